//! Certificates, keys and authorities as their files hold them now.
//!
//! Files are read again whenever a connection is made and whenever metrics are scraped: three small files cost far less
//! than a handshake, and no change can be missed. New ones that cannot be used are reported once, and the old ones stay in
//! use: whoever rotates writes a certificate and its key one after the other. New authorities count all the same, and so
//! does one that is gone: connections that stand ask once a second whether their peer's certificate still counts.

use crate::limits::AUTHORITIES_LOOK_MS;
use crate::metrics::{CERTIFICATE, CERTIFICATE_EXPIRY};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time::sleep;
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// How long a change of the files may go unseen by connections that stand.
const LOOK: Duration = Duration::from_millis(AUTHORITIES_LOOK_MS);
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

/// What a listener's files make.
pub struct Serving {
    /// What a handshake goes by.
    pub config: Arc<ServerConfig>,
    callers: Arc<dyn ClientCertVerifier>,
}

/// What a connecting side's files make.
pub struct Calling {
    /// What a handshake goes by.
    pub config: Arc<ClientConfig>,
    servers: Arc<WebPkiServerVerifier>,
}

impl Files for ServerFiles {
    type Config = Serving;
    const EXPIRE: [&'static str; 2] = ["cert", "client_ca"];

    fn section(&self) -> &str {
        &self.section
    }

    fn paths(&self) -> [&Path; 3] {
        [&self.cert, &self.key, &self.client_ca]
    }

    fn make(&self, pem: &Pem) -> Result<Serving, KeyError> {
        let provider = Arc::new(default_provider());
        let roots = Arc::new(roots(&self.client_ca, &pem[2])?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let verifier = verifier.map_err(|error| KeyError::of(&self.client_ca)(&error))?;
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
        let builder =
            builder.map_err(|error| KeyError::of(&self.cert)(&error))?.with_client_cert_verifier(Arc::clone(&verifier));
        let (chain, key) = (certificates(&self.cert, &pem[0])?, private_key(&self.key, &pem[1])?);
        let made = builder.with_single_cert(chain, key);
        let mut config = made.map_err(|error| KeyError::of(&self.cert)(&error))?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        // A resumed session would not be verified again: a certificate that expired meanwhile would still be good.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Serving { config: Arc::new(config), callers: verifier })
    }
}

impl Files for ClientFiles {
    type Config = Calling;
    const EXPIRE: [&'static str; 2] = ["cert", "ca"];

    fn section(&self) -> &str {
        &self.section
    }

    fn paths(&self) -> [&Path; 3] {
        [&self.cert, &self.key, &self.ca]
    }

    fn make(&self, pem: &Pem) -> Result<Calling, KeyError> {
        let provider: Arc<CryptoProvider> = Arc::new(default_provider());
        let roots = Arc::new(roots(&self.ca, &pem[2])?);
        let servers = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build();
        let servers = servers.map_err(|error| KeyError::of(&self.ca)(&error))?;
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
        let builder = builder.map_err(|error| KeyError::of(&self.cert)(&error))?;
        let (chain, key) = (certificates(&self.cert, &pem[0])?, private_key(&self.key, &pem[1])?);
        let made = builder.with_root_certificates(roots).with_client_auth_cert(chain, key);
        let mut config = made.map_err(|error| KeyError::of(&self.cert)(&error))?;
        config.alpn_protocols = vec![PROTOCOLS[0].to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Calling { config: Arc::new(config), servers })
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
fn expiry<'a>(certificates: impl Iterator<Item = &'a CertificateDer<'a>>) -> Option<Duration> {
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
    /// When the files were read last.
    looked: Instant,
}

impl<F: Files> Reloaded<F> {
    fn load(files: F) -> Result<Self, KeyError> {
        let pem = files.read()?;
        let config = Arc::new(files.make(&pem)?);
        let state = Mutex::new(State { pem, config, refused: None, looked: Instant::now() });
        Ok(Self { files, state })
    }

    /// What the files hold now, or held when they were last of use.
    fn current(&self) -> Arc<F::Config> {
        // Under the lock, so that nobody puts what he read earlier in the place of what another read later.
        self.look(&mut self.state())
    }

    /// As [`Self::current`], but for what changed since a moment ago: many connections ask, and the files are read once.
    fn lately(&self) -> Arc<F::Config> {
        let mut state = self.state();
        if state.looked.elapsed() < LOOK { Arc::clone(&state.config) } else { self.look(&mut state) }
    }

    fn state(&self) -> MutexGuard<'_, State<F::Config>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, state: &mut State<F::Config>) -> Arc<F::Config> {
        state.looked = Instant::now();
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
        let state = self.state();
        for (word, pem) in F::EXPIRE.iter().zip([&state.pem[0], &state.pem[2]]) {
            let found: Vec<_> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
            if let Some(at) = expiry(found.iter()) {
                let certificate = format!("{}.{word}", self.files.section());
                ::metrics::gauge!(CERTIFICATE_EXPIRY, CERTIFICATE => certificate).set(at.as_secs_f64());
            }
        }
    }
}

/// Waits until a certificate that the peer of a connection showed expires, or these are no longer satisfied with them.
async fn distrusted<C>(
    shown: &[CertificateDer<'_>],
    lately: impl Fn() -> Arc<C>,
    good: impl Fn(&C) -> Result<(), String>,
) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let expired = async {
        match expiry(shown.iter()) {
            Some(at) => sleep(at.saturating_sub(now)).await,
            None => std::future::pending().await,
        }
        "it has expired".to_owned()
    };
    let gone = async {
        let mut seen = None;
        loop {
            let held = lately();
            if !seen.is_some_and(|seen| Arc::ptr_eq(&seen, &held))
                && let Err(error) = good(&held)
            {
                return error;
            }
            seen = Some(held);
            sleep(LOOK).await;
        }
    };
    tokio::select! {
        why = expired => why,
        why = gone => why,
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
        Arc::clone(&self.0.current().config)
    }

    /// Waits until the certificate of a caller, with those below it, does not count any more; says why.
    pub async fn distrusted(&self, shown: &[CertificateDer<'_>]) -> String {
        let [own, between @ ..] = shown else { return "none was shown".into() };
        let good = |held: &Serving| match held.callers.verify_client_cert(own, between, UnixTime::now()) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        distrusted(shown, || self.0.lately(), good).await
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
        Arc::clone(&self.0.current().config)
    }

    /// Waits until the certificate of a server, with those below it, does not count any more for this name; says why.
    pub async fn distrusted(&self, shown: &[CertificateDer<'_>], name: &ServerName<'_>) -> String {
        let [own, between @ ..] = shown else { return "none was shown".into() };
        let good = |held: &Calling| match held.servers.verify_server_cert(own, between, name, &[], UnixTime::now()) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        distrusted(shown, || self.0.lately(), good).await
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
