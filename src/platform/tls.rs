//! Why a server was not trusted.

use tokio_rustls::rustls::{CertificateError, Error, InvalidMessage};

use super::error_chain::cause;

/// Why this connection was given up before a request was sent: the server did not prove who it is. Another attempt has the
/// same result until its certificate, this host's authorities or this host's clock is changed. `None`: another error.
pub fn distrust(error: &reqwest::Error) -> Option<String> {
    if !error.is_connect() {
        return None;
    }
    match cause::<Error>(error)? {
        Error::InvalidCertificate(wrong) => Some(match wrong {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired, or this host's clock is wrong".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet, or this host's clock is wrong".to_owned()
            }
            // The second: of an authority with the name of a trusted one.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "no authority that this host trusts has signed its certificate; name the authority's file in `ca_file`"
                    .to_owned()
            }
            wrong => format!("its certificate is not accepted: {wrong}"),
        }),
        Error::NoCertificatesPresented => Some("it shows no certificate".to_owned()),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Some("it does not answer in TLS; if it speaks plain HTTP, set `plain_http`".to_owned())
        }
        Error::PeerIncompatible(why) => Some(format!("it has no version of TLS in common with this host: {why:?}")),
        _ => None,
    }
}
