//! A certificate authority, and the files that it gives to processes.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use std::path::{Path, PathBuf};
use untorn::access::{Address, ClientFiles, ClientKeys};

/// An authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut parameters = CertificateParams::new(vec![]).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(parameters, key), pem }
    }

    /// Writes `name.crt` and `name.key`: a certificate with these names that is good until the end of this year.
    pub fn give(&self, folder: &Path, name: &str, names: &[&str], until: i32) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.not_after = date_time_ymd(until, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        put(&folder.join(format!("{name}.crt")), &certificate.pem());
        put(&folder.join(format!("{name}.key")), &key.serialize_pem());
    }
}

/// Writes a file as whoever rotates does: nobody reads a part of it.
pub fn put(file: &Path, text: &str) {
    let written = file.with_extension("new");
    std::fs::write(&written, text).unwrap();
    std::fs::rename(written, file).unwrap();
}

/// The files with which `name` connects.
pub fn files(folder: &Path, name: &str) -> ClientFiles {
    let file = |file: &str| -> PathBuf { folder.join(file) };
    let (cert, key) = (file(&format!("{name}.crt")), file(&format!("{name}.key")));
    ClientFiles { section: name.to_owned(), ca: file("ca.crt"), cert, key, server_name: None }
}

/// A server on this machine as `name` reaches it.
pub fn address(folder: &Path, name: &str, port: u16) -> Address {
    let keys = ClientKeys::load(files(folder, name)).unwrap();
    Address::new(&format!("https://127.0.0.1:{port}"), Some(keys.into()))
}
