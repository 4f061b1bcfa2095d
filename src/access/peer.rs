//! Who calls.

use super::role::{Grant, Role};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::asn1::{PrintableStringRef, Utf8StringRef};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::spki::ObjectIdentifier;

/// X.520's commonName.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Who is at the other end of a connection, and what it may do. Every request carries one in its extensions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Where it calls from.
    pub address: SocketAddr,
    /// The names in its certificate; `None` where a listener asks for none.
    pub names: Option<Arc<[String]>>,
    /// What it may do; `None` is nothing.
    pub role: Option<Role>,
}

impl Peer {
    /// Whoever reaches a listener without TLS: anyone, and everything is allowed.
    #[must_use]
    pub fn anyone(address: SocketAddr) -> Self {
        Self { address, names: None, role: Some(Role::Admin) }
    }

    /// The owner of a certificate that was verified. It has the highest role that one of its names has.
    #[must_use]
    pub fn certified(address: SocketAddr, certificate: &[u8], grants: &[Grant]) -> Self {
        let names = names(certificate);
        let role = grants.iter().filter(|grant| names.contains(&grant.identity)).map(|grant| grant.role).max();
        Self { address, names: Some(names.into()), role }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names.as_deref() {
            None => write!(f, "anyone at {}", self.address),
            Some([]) => write!(f, "a certificate without a name at {}", self.address),
            Some(names) => write!(f, "{} at {}", names.join(", "), self.address),
        }
    }
}

/// The subject alternative names of a certificate that are text; without any, its common name.
fn names(certificate: &[u8]) -> Vec<String> {
    let Ok(certificate) = Certificate::from_der(certificate) else { return Vec::new() };
    let alternative = certificate.tbs_certificate.get::<SubjectAltName>().ok().flatten();
    let text = |name: GeneralName| match name {
        GeneralName::DnsName(name) | GeneralName::UniformResourceIdentifier(name) | GeneralName::Rfc822Name(name) => {
            Some(name.to_string())
        }
        _ => None,
    };
    let names: Vec<String> = alternative.into_iter().flat_map(|(_, names)| names.0).filter_map(text).collect();
    if !names.is_empty() {
        return names;
    }
    let attributes = certificate.tbs_certificate.subject.0.iter().flat_map(|name| name.0.iter());
    let common = attributes.filter(|attribute| attribute.oid == COMMON_NAME).filter_map(|attribute| {
        let utf8 = attribute.value.decode_as::<Utf8StringRef<'_>>().map(|text| text.as_str().to_owned());
        utf8.or_else(|_| attribute.value.decode_as::<PrintableStringRef<'_>>().map(|text| text.as_str().to_owned()))
            .ok()
    });
    common.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn peer(names: Vec<SanType>, common: &str) -> Peer {
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = names;
        parameters.distinguished_name.push(DnType::CommonName, common);
        let certificate = parameters.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let grant = |identity: &str, role| Grant { identity: identity.into(), role };
        let grants = [
            grant("grafana", Role::Viewer),
            grant("spiffe://here/ns/db/sa/untorn", Role::Admin),
            grant("applier.example", Role::Viewer),
            grant("applier.example", Role::Operator),
        ];
        Peer::certified(([10, 0, 0, 1], 7).into(), certificate.der(), &grants)
    }

    #[test]
    fn a_certificate_has_the_highest_role_of_its_names() {
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let uri = SanType::URI("spiffe://here/ns/db/sa/untorn".try_into().unwrap());
        assert_eq!(peer(vec![], "grafana").role, Some(Role::Viewer));
        assert_eq!(peer(vec![dns("applier.example")], "x").role, Some(Role::Operator));
        assert_eq!(peer(vec![dns("applier.example"), uri], "x").role, Some(Role::Admin));
        let other = peer(vec![dns("other.example")], "grafana");
        assert_eq!(other.role, None, "a common name beside alternative names is no name");
        assert_eq!(other.to_string(), "other.example at 10.0.0.1:7");
        assert_eq!(peer(vec![], "GRAFANA").role, None);
        assert!(Peer::certified(([10, 0, 0, 1], 7).into(), b"no certificate", &[]).role.is_none());
    }
}
