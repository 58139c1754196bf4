//! Who we are to the push service: a service account of the operator's project.
//!
//! The file is Google's own format, as its console gives it out. What it holds is never shown: nothing
//! here has a `Debug`, and an error names the file and not what is in it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use http::Uri;
use ring::signature::RsaKeyPair;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use thiserror::Error;
use zeroize::Zeroizing;

/// Longest file that is read, in bytes; Google's have about 2,400.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What Google calls this kind of credentials.
const SERVICE_ACCOUNT: &str = "service_account";

/// Why the push service cannot be used.
#[derive(Debug, Error)]
pub enum FcmError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{}: is no JSON file of a Google service account", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
    },
    /// The key in the file cannot be used.
    #[error("{}: private_key is no RSA key in PKCS#8", path.display())]
    Key {
        /// Which.
        path: PathBuf,
    },
    /// The file names a place where our signature would travel in clear.
    #[error("{}: token_uri must be https, or http to this very machine", path.display())]
    TokenUri {
        /// Which.
        path: PathBuf,
    },
    /// The machine does not say which certificates it trusts.
    #[error("no trusted certificates found on this machine: {0}")]
    Certificates(#[source] io::Error),
    /// The machine gives no thread to ring from.
    #[error("no thread to ring from: {0}")]
    Thread(#[source] io::Error),
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "type")]
    kind: String,
    project_id: String,
    #[serde(default)]
    private_key_id: Option<String>,
    private_key: String,
    client_email: String,
    token_uri: String,
}

/// A service account.
pub(super) struct Credentials {
    pub(super) project: String,
    pub(super) email: String,
    pub(super) key_id: Option<String>,
    pub(super) key: RsaKeyPair,
    pub(super) token_uri: Uri,
}

impl Credentials {
    pub(super) fn read(path: &Path) -> Result<Self, FcmError> {
        let place = || path.to_owned();
        let failed = |source| FcmError::File { path: place(), source };
        let mut text = Zeroizing::new(String::new());
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        let file: File =
            serde_json::from_str(&text).map_err(|_| FcmError::Malformed { path: place() })?;
        let private_key = Zeroizing::new(file.private_key);
        // It becomes part of a path.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '_');
        if file.kind != SERVICE_ACCOUNT
            || file.project_id.is_empty()
            || !file.project_id.chars().all(plain)
        {
            return Err(FcmError::Malformed { path: place() });
        }
        let key = PrivatePkcs8KeyDer::from_pem_slice(private_key.as_bytes())
            .map_err(|_| FcmError::Key { path: place() })?;
        let key = RsaKeyPair::from_pkcs8(key.secret_pkcs8_der())
            .map_err(|_| FcmError::Key { path: place() })?;
        let token_uri: Uri =
            file.token_uri.parse().map_err(|_| FcmError::TokenUri { path: place() })?;
        if !is_private(&token_uri) {
            return Err(FcmError::TokenUri { path: place() });
        }
        Ok(Self {
            project: file.project_id,
            email: file.client_email,
            key_id: file.private_key_id,
            key,
            token_uri,
        })
    }
}

/// Whether what is sent there cannot be read on the way: over TLS, or on this machine.
pub(crate) fn is_private(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    match uri.scheme_str() {
        Some("https") => !host.is_empty(),
        Some("http") => {
            let address = host.trim_start_matches('[').trim_end_matches(']');
            host == "localhost"
                || address.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        }
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_travel_over_tls_or_not_at_all() {
        for (uri, private) in [
            ("https://oauth2.googleapis.com/token", true),
            ("http://127.0.0.1:4000/token", true),
            ("http://[::1]:4000", true),
            ("http://localhost", true),
            ("http://oauth2.googleapis.com/token", false),
            ("http://127.0.0.1.example.com", false),
            ("ftp://127.0.0.1", false),
            ("/token", false),
        ] {
            assert_eq!(is_private(&uri.parse().unwrap()), private, "{uri}");
        }
    }

    #[test]
    fn a_file_that_is_something_else_is_refused_without_being_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials.json");
        let refusal = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Credentials::read(&path).map(drop).unwrap_err().to_string()
        };
        let named = |key: &str, uri: &str| {
            format!(
                r#"{{"type":"service_account","project_id":"p","private_key":"{key}",
                "client_email":"planted@p","token_uri":"{uri}"}}"#
            )
        };
        assert!(refusal("planted").ends_with("is no JSON file of a Google service account"));
        assert!(refusal(r#"{"type":"authorized_user"}"#).ends_with("service account"));
        assert!(refusal(&named("planted", "https://x/")).contains("is no RSA key in PKCS#8"));
        for text in ["planted", &named("planted", "https://x/")] {
            assert!(!refusal(text).contains("planted"), "{}", refusal(text));
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Credentials::read(&path), Err(FcmError::File { .. })));
    }
}
