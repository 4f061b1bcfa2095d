//! Certificates, keys and authorities as their files hold them now.
//!
//! Files are read again whenever a connection is made and whenever metrics are scraped: three small files cost far less
//! than a handshake, and no change can be missed. New ones that cannot be used are reported once, and the old ones stay in
//! use: whoever rotates writes a certificate and its key one after the other. New authorities count all the same.

use crate::metrics::{CERTIFICATE, CERTIFICATE_EXPIRY};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// What gRPC and browsers speak, in the order of preference.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A listener's files, in PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerFiles {
    /// The dotted key of the section that names them, for people.
    pub section: String,
    /// Its certificate, with the intermediate ones below it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities whose certificates callers must show.
    pub client_ca: PathBuf,
}

/// A connecting side's files, in PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientFiles {
    /// The dotted key of the section that names them, for people.
    pub section: String,
    /// The authorities that the server's certificate must come from.
    pub ca: PathBuf,
    /// The certificate that is shown.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The name that the server's certificate must have, where it is not the URL's host.
    pub server_name: Option<String>,
}

/// Files that make no TLS.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}: {fault}", .file.display())]
pub struct KeyError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub fault: String,
}

impl KeyError {
    fn of(file: &Path) -> impl Fn(&dyn Display) -> Self {
        move |fault| Self { file: file.to_owned(), fault: fault.to_string() }
    }
}

/// The bytes of a certificate, its key and the authorities.
type Pem = [Vec<u8>; 3];

/// The files of a pair of ends: which they are, and what is made of them.
trait Files: Send + Sync + 'static {
    type Config: Send + Sync;
    fn section(&self) -> &str;
    /// The certificate, its key, the authorities.
    fn paths(&self) -> [&Path; 3];
    /// The words for the two files that expire, below the section's key.
    const EXPIRE: [&'static str; 2];
    fn make(&self, pem: &Pem) -> Result<Self::Config, KeyError>;

    fn read(&self) -> Result<Pem, KeyError> {
        let [cert, key, authorities] = self.paths();
        let read = |path: &Path| std::fs::read(path).map_err(|error| KeyError::of(path)(&error));
        Ok([read(cert)?, read(key)?, read(authorities)?])
    }
}

impl Files for ServerFiles {
    type Config = ServerConfig;
    const EXPIRE: [&'static str; 2] = ["cert", "client_ca"];

    fn section(&self) -> &str {
        &self.section
    }

    fn paths(&self) -> [&Path; 3] {
        [&self.cert, &self.key, &self.client_ca]
    }

    fn make(&self, pem: &Pem) -> Result<ServerConfig, KeyError> {
        let provider = Arc::new(default_provider());
        let roots = Arc::new(roots(&self.client_ca, &pem[2])?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let verifier = verifier.map_err(|error| KeyError::of(&self.client_ca)(&error))?;
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
        let builder = builder.map_err(|error| KeyError::of(&self.cert)(&error))?.with_client_cert_verifier(verifier);
        let (chain, key) = (certificates(&self.cert, &pem[0])?, private_key(&self.key, &pem[1])?);
        let made = builder.with_single_cert(chain, key);
        let mut config = made.map_err(|error| KeyError::of(&self.cert)(&error))?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        // A resumed session would not be verified again: a certificate that expired meanwhile would still be good.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

impl Files for ClientFiles {
    type Config = ClientConfig;
    const EXPIRE: [&'static str; 2] = ["cert", "ca"];

    fn section(&self) -> &str {
        &self.section
    }

    fn paths(&self) -> [&Path; 3] {
        [&self.cert, &self.key, &self.ca]
    }

    fn make(&self, pem: &Pem) -> Result<ClientConfig, KeyError> {
        let provider: Arc<CryptoProvider> = Arc::new(default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
        let builder = builder.map_err(|error| KeyError::of(&self.cert)(&error))?;
        let (chain, key) = (certificates(&self.cert, &pem[0])?, private_key(&self.key, &pem[1])?);
        let made = builder.with_root_certificates(roots(&self.ca, &pem[2])?).with_client_auth_cert(chain, key);
        let mut config = made.map_err(|error| KeyError::of(&self.cert)(&error))?;
        config.alpn_protocols = vec![PROTOCOLS[0].to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

impl ServerFiles {
    /// Whether the files make TLS now.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), KeyError> {
        self.make(&self.read()?).map(|_| ())
    }
}

impl ClientFiles {
    /// Whether the files make TLS now.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), KeyError> {
        self.make(&self.read()?).map(|_| ())
    }
}

fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, KeyError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| KeyError::of(file)(&error))?;
    if found.is_empty() {
        return Err(KeyError::of(file)(&"holds no certificate in PEM"));
    }
    Ok(found)
}

fn private_key(file: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, KeyError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| KeyError::of(file)(&"holds no private key in PEM"))
}

fn roots(file: &Path, pem: &[u8]) -> Result<RootCertStore, KeyError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, pem)? {
        roots.add(certificate).map_err(|error| KeyError::of(file)(&error))?;
    }
    Ok(roots)
}

/// When the first of these certificates expires, since the Unix epoch.
pub(super) fn expiry<'a>(certificates: impl Iterator<Item = &'a CertificateDer<'a>>) -> Option<Duration> {
    let ends = certificates.filter_map(|certificate| {
        let certificate = Certificate::from_der(certificate).ok()?;
        Some(certificate.tbs_certificate.validity.not_after.to_unix_duration())
    });
    ends.min()
}

/// What was made of files, and made again when they change.
struct Reloaded<F: Files> {
    files: F,
    state: Mutex<State<F::Config>>,
}

struct State<C> {
    pem: Pem,
    config: Arc<C>,
    /// What the files held, or why they could not be read, when they were found to be of no use.
    refused: Option<Result<Pem, KeyError>>,
}

impl<F: Files> Reloaded<F> {
    fn load(files: F) -> Result<Self, KeyError> {
        let pem = files.read()?;
        let config = Arc::new(files.make(&pem)?);
        let state = Mutex::new(State { pem, config, refused: None });
        Ok(Self { files, state })
    }

    /// What the files hold now, or held when they were last of use.
    fn current(&self) -> Arc<F::Config> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that nobody puts what he read earlier in the place of what another read later.
        let read = self.files.read();
        let changed = !matches!(&read, Ok(pem) if *pem == state.pem);
        if !changed {
            state.refused = None;
        } else if state.refused.as_ref() != Some(&read) {
            let made = read.clone().and_then(|pem| Ok((self.files.make(&pem)?, pem)));
            match made {
                Ok((config, pem)) => {
                    (state.config, state.pem, state.refused) = (Arc::new(config), pem, None);
                    tracing::info!(section = self.files.section(), "certificates were read again");
                }
                Err(error) => {
                    let section = self.files.section();
                    tracing::warn!(section, %error, "the new certificates cannot be used; the old ones stay");
                    // A certificate whose key is still to be written is no reason not to know the others' new authority.
                    if let Ok([.., authorities]) = &read {
                        let old = [state.pem[0].clone(), state.pem[1].clone(), authorities.clone()];
                        if let Ok(config) = self.files.make(&old) {
                            (state.config, state.pem) = (Arc::new(config), old);
                        }
                    }
                    state.refused = Some(read);
                }
            }
        }
        Arc::clone(&state.config)
    }

    fn set_gauges(&self) {
        self.current();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (word, pem) in F::EXPIRE.iter().zip([&state.pem[0], &state.pem[2]]) {
            let found: Vec<_> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
            if let Some(at) = expiry(found.iter()) {
                let certificate = format!("{}.{word}", self.files.section());
                ::metrics::gauge!(CERTIFICATE_EXPIRY, CERTIFICATE => certificate).set(at.as_secs_f64());
            }
        }
    }
}

/// A listener's side of TLS.
pub struct ServerKeys(Reloaded<ServerFiles>);

impl ServerKeys {
    /// Reads the files.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(files: ServerFiles) -> Result<Self, KeyError> {
        Reloaded::load(files).map(Self)
    }

    /// What the next handshake goes by.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        self.0.current()
    }
}

/// A connecting side's part of TLS.
pub struct ClientKeys(Reloaded<ClientFiles>);

impl ClientKeys {
    /// As [`ServerKeys::load`].
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(files: ClientFiles) -> Result<Self, KeyError> {
        Reloaded::load(files).map(Self)
    }

    /// What the next handshake goes by.
    #[must_use]
    pub fn current(&self) -> Arc<ClientConfig> {
        self.0.current()
    }

    /// The name that the server must have, where it is not the URL's host.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        self.0.files.server_name.as_deref()
    }
}

impl std::fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClientKeys").field(&self.0.files.section).finish()
    }
}

/// All keys of a process, so that metrics can say when they expire.
#[derive(Clone, Default)]
pub struct Keyring {
    servers: Vec<Arc<ServerKeys>>,
    clients: Vec<Arc<ClientKeys>>,
}

impl Keyring {
    /// Adds a listener's.
    ///
    /// # Errors
    /// As [`ServerKeys::load`].
    pub fn server(&mut self, files: ServerFiles) -> Result<Arc<ServerKeys>, KeyError> {
        let keys = Arc::new(ServerKeys::load(files)?);
        self.servers.push(Arc::clone(&keys));
        Ok(keys)
    }

    /// Adds a connecting side's.
    ///
    /// # Errors
    /// As [`ClientKeys::load`].
    pub fn client(&mut self, files: ClientFiles) -> Result<Arc<ClientKeys>, KeyError> {
        let keys = Arc::new(ClientKeys::load(files)?);
        self.clients.push(Arc::clone(&keys));
        Ok(keys)
    }

    /// Sets the gauges that say when certificates expire: called when somebody scrapes.
    pub fn set_gauges(&self) {
        self.servers.iter().for_each(|keys| keys.0.set_gauges());
        self.clients.iter().for_each(|keys| keys.0.set_gauges());
    }
}
