//! The service's key: encryption of stored secrets, and tokens that are derived instead of stored.
//!
//! One file of 32 random bytes beside the database, mode 0600. Two keys derive from it: one encrypts what only a
//! guest may see (AES-256-GCM, bound to the vm's id), the other makes each vm's token (HMAC-SHA-256 of its id). So no
//! table and no backup of the database contains a vm's token, and a guest that boots after a restart can still get
//! it.

use std::{
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    constant_time, digest, hkdf, hmac,
    rand::{SecureRandom, SystemRandom},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    domain::{GuestRole, VmId},
    platform::files,
};

const VM_TOKEN_PREFIX: &str = "mfv_";
const JOB_TOKEN_PREFIX: &str = "mfj_";
const API_TOKEN_PREFIX: &str = "mfa_";

pub struct Vault {
    sealing: RandomizedNonceKey,
    tokens: hmac::Key,
    job_tokens: hmac::Key,
    requests: hmac::Key,
}

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("the key {path} cannot be read: {cause}; make it readable, or restore it from a backup")]
    Io { path: String, cause: io::Error },
    #[error("{path} is readable by others (mode {mode:o}); run: chmod 600 {path}")]
    Mode { path: String, mode: u32 },
    #[error(
        "{path} does not hold a key (expected 32 bytes, found {found}); restore it from a backup: without it the secrets of live vms cannot be read"
    )]
    Length { path: String, found: usize },
}

impl Vault {
    /// Reads the key file, and creates it at the first start.
    pub fn open(path: &Path) -> Result<Vault, VaultError> {
        let shown = || path.display().to_string();
        let io = |cause| VaultError::Io { path: shown(), cause };
        let mut bytes = Vec::new();
        match std::fs::File::open(path) {
            Ok(mut file) => {
                let mode = file.metadata().map_err(io)?.mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(VaultError::Mode { path: shown(), mode });
                }
                file.read_to_end(&mut bytes).map_err(io)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bytes = random::<32>().to_vec();
                files::replace(path, &bytes).map_err(io)?;
            }
            Err(error) => return Err(io(error)),
        }
        let key: [u8; 32] =
            bytes.as_slice().try_into().map_err(|_| VaultError::Length { path: shown(), found: bytes.len() })?;
        Ok(Self::from_key(&key))
    }

    pub fn from_key(key: &[u8; 32]) -> Vault {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"mayfly").extract(key);
        let derive = |info: &[u8]| {
            let mut out = [0u8; 32];
            root.expand(&[info], hkdf::HKDF_SHA256)
                .and_then(|okm| okm.fill(&mut out))
                .expect("32 bytes are within HKDF-SHA256's output limit");
            out
        };
        Vault {
            sealing: RandomizedNonceKey::new(&AES_256_GCM, &derive(b"vm secrets"))
                .expect("32 bytes are the length of an AES-256 key"),
            tokens: hmac::Key::new(hmac::HMAC_SHA256, &derive(b"vm tokens")),
            job_tokens: hmac::Key::new(hmac::HMAC_SHA256, &derive(b"job tokens")),
            requests: hmac::Key::new(hmac::HMAC_SHA256, &derive(b"request fingerprints")),
        }
    }

    /// Compares requests without storing them. Keyed, because a request may contain a secret that can be guessed.
    pub fn fingerprint(&self, request: &[u8]) -> [u8; 32] {
        hmac::sign(&self.requests, request).as_ref().try_into().expect("HMAC-SHA-256 gives 32 bytes")
    }

    pub fn seal(&self, vm: VmId, clear: &[u8]) -> Vec<u8> {
        let mut body = clear.to_vec();
        let nonce = self
            .sealing
            .seal_in_place_append_tag(Aad::from(vm.0.as_bytes()), &mut body)
            .expect("sealing fails only beyond 64 GiB");
        let mut sealed = nonce.as_ref().to_vec();
        sealed.append(&mut body);
        sealed
    }

    /// `None` if it was not encrypted with this key for this vm.
    pub fn unseal(&self, vm: VmId, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = body.to_vec();
        let clear = self.sealing.open_in_place(nonce, Aad::from(vm.0.as_bytes()), &mut body).ok()?;
        Some(clear.to_vec())
    }

    /// The token of a vm's wrapper, `mfv_<id without dashes>_<mac>`, or of its job, `mfj_…`. They have different keys,
    /// so one cannot be made from the other.
    pub fn vm_token(&self, vm: VmId, role: GuestRole) -> SecretString {
        let (prefix, key) = match role {
            GuestRole::Wrapper => (VM_TOKEN_PREFIX, &self.tokens),
            GuestRole::Job => (JOB_TOKEN_PREFIX, &self.job_tokens),
        };
        let mac = hmac::sign(key, vm.0.as_bytes());
        format!("{prefix}{}_{}", vm.0.simple(), BASE64.encode(mac.as_ref())).into()
    }

    /// The vm of a vm token, and for whom it was made; `None` if the token is not valid.
    pub fn vm_of_token(&self, token: &SecretString) -> Option<(VmId, GuestRole)> {
        let given = token.expose_secret();
        let (rest, role) = match given.strip_prefix(JOB_TOKEN_PREFIX) {
            Some(rest) => (rest, GuestRole::Job),
            None => (given.strip_prefix(VM_TOKEN_PREFIX)?, GuestRole::Wrapper),
        };
        let (id, _) = rest.split_once('_')?;
        let vm = VmId(id.parse().ok()?);
        let expected = self.vm_token(vm, role);
        constant_time::verify_slices_are_equal(expected.expose_secret().as_bytes(), given.as_bytes()).ok()?;
        Some((vm, role))
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives randomness");
    bytes
}

/// A new API token, `mfa_…`: 256 random bits.
pub fn mint_api_token() -> SecretString {
    format!("{API_TOKEN_PREFIX}{}", BASE64.encode(random::<32>())).into()
}

pub fn hash_token(token: &SecretString) -> [u8; 32] {
    sha256(token.expose_secret().as_bytes())
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_open_for_their_vm_only() {
        let vault = Vault::from_key(&[7; 32]);
        let (a, b) = (VmId::mint(), VmId::mint());
        let sealed = vault.seal(a, b"token");
        assert_eq!(vault.unseal(a, &sealed).as_deref(), Some(&b"token"[..]));
        assert_eq!(vault.unseal(b, &sealed), None);
        assert_eq!(Vault::from_key(&[8; 32]).unseal(a, &sealed), None);
        for cut in 0..sealed.len() {
            assert_eq!(vault.unseal(a, &sealed[..cut]), None);
        }
        assert!(!sealed.windows(5).any(|w| w == b"token"));
    }

    #[test]
    fn a_vm_token_names_its_vm_and_cannot_be_bent() {
        let vault = Vault::from_key(&[7; 32]);
        let vm = VmId::mint();
        for role in [GuestRole::Wrapper, GuestRole::Job] {
            let token = vault.vm_token(vm, role);
            assert_eq!(vault.vm_of_token(&token), Some((vm, role)));
            assert_eq!(Vault::from_key(&[8; 32]).vm_of_token(&token), None);
            let other = token.expose_secret().replace(&vm.0.simple().to_string(), &VmId::mint().0.simple().to_string());
            assert_eq!(vault.vm_of_token(&other.into()), None);
            let upper = token.expose_secret().to_uppercase();
            assert_eq!(vault.vm_of_token(&upper.into()), None);
        }
        let job = vault.vm_token(vm, GuestRole::Job);
        let renamed = job.expose_secret().replacen(JOB_TOKEN_PREFIX, VM_TOKEN_PREFIX, 1);
        assert_eq!(vault.vm_of_token(&renamed.into()), None, "the job's token became the wrapper's");
        assert_eq!(vault.vm_of_token(&"mfv_".into()), None);
        assert_eq!(vault.vm_of_token(&mint_api_token()), None);
    }

    #[test]
    fn the_key_file_is_private_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret.key");
        let vm = VmId::mint();
        let first = Vault::open(&path).unwrap().vm_token(vm, GuestRole::Wrapper);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let again = Vault::open(&path).unwrap().vm_token(vm, GuestRole::Wrapper);
        assert_eq!(again.expose_secret(), first.expose_secret());
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(Vault::open(&path), Err(VaultError::Mode { .. })));
    }
}
