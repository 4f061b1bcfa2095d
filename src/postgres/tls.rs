//! TLS to a server, by libpq's words: `sslmode` and `sslrootcert`.

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_postgres_rustls::MakeRustlsConnect;

/// Where Debian and its kin keep the authorities that the system trusts (`sslrootcert=system`).
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Whether and how a connection is encrypted.
#[derive(Clone)]
pub enum Tls {
    /// Never.
    Disable,
    /// If the server offers it; nothing is verified.
    Prefer(MakeRustlsConnect),
    /// Always; what is verified is up to the mode.
    Require(MakeRustlsConnect),
}

impl Tls {
    /// From the mode (libpq's default is `prefer`) and the file of the authorities to trust.
    ///
    /// # Errors
    /// An unknown mode, or authorities that cannot be read.
    pub fn new(mode: Option<&str>, root: Option<PathBuf>) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(match mode.unwrap_or("prefer") {
            "disable" => Self::Disable,
            "allow" | "prefer" => Self::Prefer(connector(Verifier { authorities: None, names: false, provider })?),
            // With authorities given, `require` verifies them: so does libpq.
            "require" if root.is_none() => {
                Self::Require(connector(Verifier { authorities: None, names: false, provider })?)
            }
            mode @ ("require" | "verify-ca" | "verify-full") => {
                let authorities = Some(authorities(root, &provider)?);
                Self::Require(connector(Verifier { authorities, names: mode == "verify-full", provider })?)
            }
            other => {
                return Err(format!(
                    "sslmode={other} is not known; use disable, prefer, require, verify-ca or verify-full"
                ));
            }
        })
    }
}

/// Takes `sslmode` and `sslrootcert` out of a URL: the URL without them, the mode, the file.
///
/// # Errors
/// A URL whose parameters cannot be read.
pub fn split_url(url: &str) -> Result<(String, Option<String>, Option<PathBuf>), String> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err("not a PostgreSQL URL: it begins with neither postgres:// nor postgresql://".into());
    }
    let (bare, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut mode, mut root, mut rest) = (None, None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').ok_or_else(|| format!("the URL's parameter {pair:?} has no value"))? {
            ("sslmode", value) => mode = Some(value.to_owned()),
            ("sslrootcert", value) => root = Some(PathBuf::from(percent_decode(value)?)),
            _ => rest.push(pair),
        }
    }
    let bare = if rest.is_empty() { bare.to_owned() } else { format!("{bare}?{}", rest.join("&")) };
    Ok((bare, mode, root))
}

fn percent_decode(text: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next().unwrap_or(0), bytes.next().unwrap_or(0)];
        let digits = std::str::from_utf8(&digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(digits.ok_or_else(|| format!("{text:?} has a % without two hexadecimal digits"))?);
    }
    String::from_utf8(out).map_err(|_| format!("{text:?} is no UTF-8"))
}

fn authorities(root: Option<PathBuf>, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, String> {
    let of_user = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".postgresql/root.crt"));
    let path = match root {
        Some(path) if path == Path::new("system") => PathBuf::from(SYSTEM_ROOTS),
        Some(path) => path,
        None => of_user().filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from(SYSTEM_ROOTS)),
    };
    let what = |e: &dyn std::fmt::Display| format!("sslrootcert {}: {e}", path.display());
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&path).map_err(|e| what(&e))? {
        store.add(certificate.map_err(|e| what(&e))?).map_err(|e| what(&e))?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone()).build().map_err(|e| what(&e))
}

fn connector(verifier: Verifier) -> Result<MakeRustlsConnect, String> {
    let config = ClientConfig::builder_with_provider(verifier.provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// Verifies what the mode asks for: nothing, the authority, or the authority and the name.
#[derive(Debug)]
struct Verifier {
    authorities: Option<Arc<WebPkiServerVerifier>>,
    names: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authorities) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        // The name is checked last, so a certificate that fails by its name has passed everything else.
        match authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.names => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modes_words_are_taken_out_of_the_url() {
        let url = "postgres://u@h/db?sslmode=verify-full&connect_timeout=3&sslrootcert=/a%20b.crt";
        let (bare, mode, root) = split_url(url).unwrap();
        assert_eq!(bare, "postgres://u@h/db?connect_timeout=3");
        assert_eq!((mode.as_deref(), root), (Some("verify-full"), Some(PathBuf::from("/a b.crt"))));
        assert!(split_url("postgres://u@h/db?sslrootcert=%zz").unwrap_err().contains('%'));
    }

    #[test]
    fn authorities_that_are_not_there_are_named() {
        let error = Tls::new(Some("verify-ca"), Some("/no/such.crt".into())).err().unwrap();
        assert!(error.contains("/no/such.crt"), "{error}");
        assert!(matches!(Tls::new(None, None).unwrap(), Tls::Prefer(_)));
    }
}
