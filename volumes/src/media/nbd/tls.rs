//! Certificates: whom we trust, and who we are.
//!
//! There is no way not to check the server: its certificate must come from `ca-cert.pem` and be made
//! out to the expected name. Awkward case: an error about a key says where the file is and never what
//! is in it.

use super::NbdError;
use super::url::Tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::path::Path;
use std::sync::Arc;

const CA: &str = "ca-cert.pem";
const CERTIFICATE: &str = "client-cert.pem";
const KEY: &str = "client-key.pem";

fn fail(file: &Path, detail: impl Into<String>) -> NbdError {
    NbdError::Certificates { file: file.to_owned(), detail: detail.into() }
}

/// Reads the folder anew for every connection: certificates are renewed while daemons run.
pub(super) fn client(tls: &Tls) -> Result<ClientConnection, NbdError> {
    let dir = &tls.certificates;
    let mut roots = RootCertStore::empty();
    let ca = dir.join(CA);
    for certificate in certificates(&ca)? {
        roots.add(certificate).map_err(|e| fail(&ca, e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| fail(dir, e.to_string()))?
        .with_root_certificates(roots);
    let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
    let config = match (certificate.exists(), key.exists()) {
        (false, false) => config.with_no_client_auth(),
        (true, false) => return Err(fail(&key, "it is missing beside the certificate")),
        (false, true) => return Err(fail(&certificate, "it is missing beside the key")),
        (true, true) => {
            let chain = certificates(&certificate)?;
            let secret = PrivateKeyDer::from_pem_file(&key).map_err(|e| match e {
                rustls::pki_types::pem::Error::Io(e) => fail(&key, e.to_string()),
                _ => fail(&key, "it holds no private key in PEM"),
            })?;
            let config = config.with_client_auth_cert(chain, secret);
            config.map_err(|_| fail(&key, "the key cannot be used with the certificate"))?
        }
    };
    let name = ServerName::try_from(tls.hostname.clone())
        .map_err(|_| fail(dir, format!("{:?} is no host name to check", tls.hostname)))?;
    ClientConnection::new(Arc::new(config), name).map_err(|e| fail(dir, e.to_string()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, NbdError> {
    let found = CertificateDer::pem_file_iter(file)
        .and_then(|found| found.collect::<Result<Vec<_>, _>>())
        .map_err(|e| match e {
            rustls::pki_types::pem::Error::Io(e) => fail(file, e.to_string()),
            _ => fail(file, "it is no PEM file"),
        })?;
    if found.is_empty() { Err(fail(file, "it holds no certificate in PEM")) } else { Ok(found) }
}
