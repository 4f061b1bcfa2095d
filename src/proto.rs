//! The messages and services of `proto/`, generated, and the conversions that several rooms share.

pub mod transport;
pub mod wire;

/// Generated code of one package. The module `v1` inside is where the packages look for each other.
macro_rules! package {
    ($(#[$doc:meta])* $room:ident, $package:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, clippy::all, clippy::pedantic)]
        pub mod $room {
            /// Version 1 of the package.
            pub mod v1 {
                tonic::include_proto!($package);
            }
            pub use self::v1::*;
        }
    };
}

package! {
    /// The CDC service: what a source serves.
    cdc, "untorn.cdc.v1"
}
package! {
    /// The tablet service: what a replica tablet's leader serves.
    tablet, "untorn.tablet.v1"
}
package! {
    /// The transaction leader's service, and the transaction record.
    transaction, "untorn.transaction.v1"
}
package! {
    /// The admin service.
    admin, "untorn.admin.v1"
}
