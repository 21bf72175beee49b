//! Certificates as text (PEM), for other programs.

use std::{fs::File, io::Read as _, path::Path};

use reqwest::Certificate;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The certificates of a file without the text around them: at least one. The error names the file. A file with a private
/// key is refused, because every reader of the certificates would get it.
pub fn read_certificate_text(path: &Path, largest: u64) -> Result<String, String> {
    let unusable = |why: &str| format!("the certificates in {}: {why}", path.display());
    let mut text = String::new();
    let file = File::open(path).map_err(|error| unusable(&error.to_string()))?;
    file.take(largest + 1).read_to_string(&mut text).map_err(|error| unusable(&error.to_string()))?;
    if text.len() as u64 > largest {
        return Err(unusable(&format!(
            "the file is larger than {} KiB; list additional authorities only",
            largest >> 10
        )));
    }
    if text.contains("PRIVATE KEY-----") {
        return Err(unusable("the file holds a private key; name a file with certificates only"));
    }
    let certificates = blocks(&text);
    match Certificate::from_pem_bundle(certificates.as_bytes()) {
        Ok(found) if found.is_empty() => Err(unusable("the file holds no certificate (PEM)")),
        Ok(_) => Ok(certificates),
        Err(error) => Err(unusable(&error.to_string())),
    }
}

fn blocks(text: &str) -> String {
    let mut found = String::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        inside |= line == BEGIN;
        if inside {
            found.push_str(line);
            found.push('\n');
        }
        inside &= line != END;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certificates_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_certificate_text(&path, 4096)
        };
        let made = rcgen::generate_simple_self_signed(["ca.test".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let text = format!("# Corp\r\n{}junk\n{certificate}", certificate.replace('\n', "\r\n"));
        let plain = certificate.replace('\r', "");
        assert_eq!(read(&text).unwrap(), format!("{plain}{plain}"));
        for (wrong, why) in [
            (String::new(), "holds no certificate"),
            ("junk".to_owned(), "holds no certificate"),
            (format!("{certificate}{key}"), "holds a private key"),
            ("x".repeat(5000), "larger than 4 KiB"),
            (format!("{BEGIN}\n!\n{END}\n"), "the certificates in"),
        ] {
            let said = read(&wrong).unwrap_err();
            assert!(said.contains(why) && said.contains("ca.pem"), "{said}");
        }
        assert!(read_certificate_text(&dir.path().join("none.pem"), 4096).unwrap_err().contains("none.pem"));
    }
}
