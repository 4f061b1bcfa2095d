//! TLS to a server, by libpq's words: `sslmode`, `sslrootcert`, `sslcert` and `sslkey`.

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
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
    /// From what a URL says.
    ///
    /// # Errors
    /// An unknown mode, or files that cannot be read.
    pub fn new(words: Words) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let Words { mode, root, shown } = words;
        let connector = |authorities, names, provider| connector(Verifier { authorities, names, provider }, shown);
        Ok(match mode.as_deref().unwrap_or("prefer") {
            "disable" => Self::Disable,
            "allow" | "prefer" => Self::Prefer(connector(None, false, provider)?),
            // With authorities given, `require` verifies them: so does libpq.
            "require" if root.is_none() => Self::Require(connector(None, false, provider)?),
            mode @ ("require" | "verify-ca" | "verify-full") => {
                let authorities = Some(authorities(root, &provider)?);
                Self::Require(connector(authorities, mode == "verify-full", provider)?)
            }
            other => {
                return Err(format!(
                    "sslmode={other} is not known; use disable, prefer, require, verify-ca or verify-full"
                ));
            }
        })
    }
}

/// What a URL says about TLS.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Words {
    /// `sslmode`; libpq's default is `prefer`.
    pub mode: Option<String>,
    /// `sslrootcert`: the file of the authorities to trust.
    pub root: Option<PathBuf>,
    /// `sslcert` and `sslkey`: the certificate to show, with the intermediate ones below it, and its key; in PEM.
    pub shown: Option<(PathBuf, PathBuf)>,
}

/// Takes the words about TLS out of a URL: the URL without them, and the words.
///
/// # Errors
/// A URL whose parameters cannot be read, or a certificate without its key.
pub fn split_url(url: &str) -> Result<(String, Words), String> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err("not a PostgreSQL URL: it begins with neither postgres:// nor postgresql://".into());
    }
    let (bare, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut words, mut rest) = (Words::default(), Vec::new());
    let (mut cert, mut key) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| format!("the URL's parameter {pair:?} has no value"))?;
        let file = || percent_decode(value).map(PathBuf::from);
        match name {
            "sslmode" => words.mode = Some(value.to_owned()),
            "sslrootcert" => words.root = Some(file()?),
            "sslcert" => cert = Some(file()?),
            "sslkey" => key = Some(file()?),
            _ => rest.push(pair),
        }
    }
    words.shown = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => return Err("the URL names only one of sslcert and sslkey; a certificate is shown with its key".into()),
    };
    let bare = if rest.is_empty() { bare.to_owned() } else { format!("{bare}?{}", rest.join("&")) };
    Ok((bare, words))
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

fn connector(verifier: Verifier, shown: Option<(PathBuf, PathBuf)>) -> Result<MakeRustlsConnect, String> {
    let config = ClientConfig::builder_with_provider(verifier.provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let Some((cert, key)) = shown else { return Ok(MakeRustlsConnect::new(config.with_no_client_auth())) };
    let fault = |word: &str, file: &Path, e: &dyn std::fmt::Display| format!("{word} {}: {e}", file.display());
    let chain = CertificateDer::pem_file_iter(&cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|e| fault("sslcert", &cert, &e))?;
    let private = PrivateKeyDer::from_pem_file(&key).map_err(|e| fault("sslkey", &key, &e))?;
    let config = config.with_client_auth_cert(chain, private).map_err(|e| fault("sslcert", &cert, &e))?;
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
        let url = "postgres://u@h/db?sslmode=verify-full&connect_timeout=3&sslrootcert=/a%20b.crt&sslkey=/k&sslcert=/c";
        let (bare, words) = split_url(url).unwrap();
        assert_eq!(bare, "postgres://u@h/db?connect_timeout=3");
        let file = |name: &str| PathBuf::from(name);
        let shown = Some((file("/c"), file("/k")));
        assert_eq!(words, Words { mode: Some("verify-full".into()), root: Some(file("/a b.crt")), shown });
        assert!(split_url("postgres://u@h/db?sslcert=/c").unwrap_err().contains("sslkey"));
        assert!(split_url("postgres://u@h/db?sslrootcert=%zz").unwrap_err().contains('%'));
    }

    #[test]
    fn files_that_are_not_there_are_named() {
        let words = |text: &str| split_url(&format!("postgres://u@h/db?{text}")).unwrap().1;
        for (text, named) in [
            ("sslmode=verify-ca&sslrootcert=/no/such.crt", "sslrootcert /no/such.crt"),
            ("sslcert=/no/such.crt&sslkey=/no/such.key", "sslcert /no/such.crt"),
        ] {
            let error = Tls::new(words(text)).err().unwrap();
            assert!(error.contains(named), "{error}");
        }
        assert!(matches!(Tls::new(Words::default()).unwrap(), Tls::Prefer(_)));
    }
}
