//! The JSON Web Token of an App: valid for a few minutes, signed with its private key.

use std::{fmt, sync::Arc};

use aws_lc_rs::digest;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use pkcs8::PrivateKeyInfoRef;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use serde::Serialize;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, pem::PemObject};

/// Tolerance for clock differences: a token from the future is refused.
const BACKDATED: SignedDuration = SignedDuration::from_secs(60);
/// GitHub accepts ten minutes at most, by its own clock.
const LIFE: SignedDuration = SignedDuration::from_mins(9);

#[derive(Clone)]
pub struct Signer {
    app_id: String,
    key: Arc<EncodingKey>,
    /// Hash of the key, to detect a new key without storing it.
    digest: [u8; 32],
}

#[derive(Serialize)]
struct Claims<'a> {
    iat: i64,
    exp: i64,
    iss: &'a str,
}

impl Signer {
    /// Accepts PEM as GitHub issues it (PKCS#1), and PKCS#8. An unusable key is refused here and not at the first
    /// request.
    pub fn new(app_id: &str, pem: &SecretString) -> Result<Signer, String> {
        const WRONG: &str = "expected an RSA private key in PEM, as the App's page gives it (BEGIN RSA PRIVATE KEY)";
        let pem = pem.expose_secret().as_bytes();
        let key = key(pem).ok_or_else(|| WRONG.to_owned())?;
        let sum = digest::digest(&digest::SHA256, pem);
        let digest = sum.as_ref().try_into().expect("SHA-256 has 32 bytes");
        let signer = Signer { app_id: app_id.to_owned(), key: Arc::new(key), digest };
        signer.sign(Timestamp::UNIX_EPOCH).map_err(|_| WRONG.to_owned())?;
        Ok(signer)
    }

    pub fn app_id(&self) -> &str {
        &self.app_id
    }

    pub fn sign(&self, now: Timestamp) -> Result<SecretString, String> {
        let claims = Claims { iat: (now - BACKDATED).as_second(), exp: (now + LIFE).as_second(), iss: &self.app_id };
        jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &self.key)
            .map(SecretString::from)
            .map_err(|_| "the private key cannot sign".to_owned())
    }

    pub(super) fn same(&self, other: &Signer) -> bool {
        self.app_id == other.app_id && self.digest == other.digest
    }
}

/// The cause of a parse error is not shown, because it may quote the key.
fn key(pem: &[u8]) -> Option<EncodingKey> {
    let key = Zeroizing::new(PrivateKeyDer::from_pem_slice(pem).ok()?);
    match &*key {
        PrivateKeyDer::Pkcs1(der) => Some(EncodingKey::from_rsa_der(der.secret_pkcs1_der())),
        PrivateKeyDer::Pkcs8(der) => {
            let info = PrivateKeyInfoRef::try_from(der.secret_pkcs8_der()).ok()?;
            Some(EncodingKey::from_rsa_der(info.private_key.as_bytes()))
        }
        _ => None,
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("app_id", &self.app_id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::AsDer,
        rsa::KeySize,
        signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey},
    };
    use base64::{
        Engine,
        engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
    };

    use super::*;

    fn pem(label: &str, der: &[u8]) -> String {
        let text = STANDARD.encode(der);
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    #[test]
    fn both_kinds_of_key_sign_what_the_public_key_confirms() {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let pkcs8 = AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'static>>::as_der(&pair).unwrap();
        // An RSA key in PKCS#8 is its PKCS#1 form behind a header of 26 bytes.
        let kinds = [("PRIVATE KEY", pkcs8.as_ref()), ("RSA PRIVATE KEY", &pkcs8.as_ref()[26..])];
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        for (label, der) in kinds {
            let signer = Signer::new("Iv23", &pem(label, der).into()).unwrap();
            let token = signer.sign(now).unwrap();
            let parts: Vec<&str> = token.expose_secret().split('.').collect();
            let signed = format!("{}.{}", parts[0], parts[1]);
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public_key().as_ref())
                .verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(parts[2]).unwrap())
                .unwrap();
            let json = |part: &str| -> serde_json::Value {
                serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
            };
            assert_eq!(json(parts[0]), serde_json::json!({"alg": "RS256", "typ": "JWT"}));
            let at = now.as_second();
            assert_eq!(json(parts[1]), serde_json::json!({"iat": at - 60, "exp": at + 540, "iss": "Iv23"}));
            assert_eq!(format!("{signer:?}"), "Signer { app_id: \"Iv23\", .. }");
        }
    }

    #[test]
    fn what_is_no_rsa_key_is_refused_and_not_quoted() {
        for wrong in ["", "hunter2", "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----\n"] {
            let said = Signer::new("1", &wrong.into()).unwrap_err();
            assert!(said.contains("BEGIN RSA PRIVATE KEY") && !said.contains("hunter2"), "{said}");
        }
        let junk = pem("RSA PRIVATE KEY", &[0x30, 3, 2, 1, 0]);
        assert!(Signer::new("1", &junk.into()).is_err());
    }
}
