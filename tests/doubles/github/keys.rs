//! Keys of Apps: made here, the private half given away once, and only the public half used.

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::KeySize,
    signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::Value;

pub struct AppKey {
    public: Vec<u8>,
}

pub struct PrivateKey {
    /// As GitHub gives it.
    pub pkcs1: String,
    pub pkcs8: String,
}

impl AppKey {
    pub fn make() -> (AppKey, PrivateKey) {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key can be made");
        let pkcs8 = AsDer::<Pkcs8V1Der<'static>>::as_der(&pair).expect("a key can be written");
        let der = pkcs8.as_ref();
        // An RSA key in PKCS#8 is its PKCS#1 form behind a header of 26 bytes.
        let private = PrivateKey { pkcs1: pem("RSA PRIVATE KEY", &der[26..]), pkcs8: pem("PRIVATE KEY", der) };
        (AppKey { public: pair.public_key().as_ref().to_vec() }, private)
    }

    /// The claims of a token that this key's private half has signed by RS256.
    pub fn verify(&self, token: &str) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let json = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        let header = json(header)?;
        if header["alg"] != "RS256" {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public).verify(signed.as_bytes(), &signature).ok()?;
        json(claims)
    }
}

/// What a token says without proof.
pub fn claims(token: &str) -> Option<Value> {
    let part = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).expect("base64 is text"));
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}
