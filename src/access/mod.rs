//! Who may call: TLS at both ends of a connection, who the peer is, what its role allows, and a line for everything that
//! an operator did.
//!
//! A listener without TLS is open, and stands only on loopback (or beyond it where the configuration says so). With TLS
//! every caller shows a certificate of the listener's authority, and names in the certificate have roles; who has none is
//! refused ([`Role`]). Certificates, keys and authorities are read again whenever a connection is made ([`ServerKeys`],
//! [`ClientKeys`]): a rotation needs no signal, and connections that stand go on, until their peer's certificate expires or
//! its authority is taken away.

mod audit;
mod connect;
mod keys;
mod listener;
mod peer;
mod role;
mod serve;
mod trusted;

pub use audit::audit;
pub use connect::{Address, BadAddress};
pub use keys::{ClientFiles, ClientKeys, KeyError, Keyring, ServerFiles, ServerKeys};
pub use listener::{Connection, Listener};
pub use peer::Peer;
pub use role::{Grant, Role};
pub use serve::serve;
