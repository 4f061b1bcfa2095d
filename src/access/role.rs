//! Roles, and what each may call.

use serde::{Deserialize, Serialize};

/// What a peer may do; each role may do what the one before it may.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees how everything stands, and changes nothing. Sees no rows.
    Viewer,
    /// Reads rows, and does what can be undone.
    Operator,
    /// Writes, and does what cannot be undone.
    Admin,
}

impl Role {
    /// The role's word in a configuration.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// One `[[….access]]` entry: a name in a certificate, and the role that it has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// A subject alternative name (DNS, URI or mail address), or the common name of a certificate without one.
    pub identity: String,
    /// What whoever has that name may do.
    pub role: Role,
}

/// Services by what their calls need. A method or path that stands nowhere here needs [`Role::Admin`].
const NEEDS: &[(Role, &str, &[&str])] = &[
    (Role::Viewer, "untorn.admin.v1.AdminService", &["Status", "Explain", "Waiting"]),
    (
        Role::Operator,
        "untorn.admin.v1.AdminService",
        &["Scan", "LogFilter", "VerifyTables", "Verify", "Retry", "Recopy"],
    ),
    (Role::Admin, "untorn.admin.v1.AdminService", &["Skip"]),
    (Role::Viewer, "untorn.cdc.v1.CdcService", &["ListTablets"]),
    (Role::Operator, "untorn.cdc.v1.CdcService", &["GetCdcRecords", "CheckTransactions"]),
    (Role::Viewer, "untorn.tablet.v1.TabletService", &["Stats"]),
    (Role::Operator, "untorn.tablet.v1.TabletService", &["Read"]),
    (
        Role::Admin,
        "untorn.tablet.v1.TabletService",
        &[
            "Announce",
            "AnnouncePuller",
            "WriteProvisional",
            "StageChunk",
            "DropChunks",
            "Fill",
            "CopyRows",
            "Apply",
            "Sync",
        ],
    ),
    (Role::Viewer, "untorn.transaction.v1.TransactionService", &["GetTransactionRecord"]),
    (
        Role::Admin,
        "untorn.transaction.v1.TransactionService",
        &["OpenStream", "Report", "Table", "Slot", "Published", "CopyBegun", "Copied", "SetStreamState"],
    ),
];

/// HTTP paths, or their first part, that a viewer may get.
const PAGES: &[&str] = &["", "status", "explain", "waiting", "livez", "readyz", "metrics"];

/// The role that a request's path needs.
#[must_use]
pub fn needs(path: &str) -> Role {
    let Some((first, rest)) = path.trim_start_matches('/').split_once('/') else {
        let first = path.trim_start_matches('/');
        return if PAGES.contains(&first) { Role::Viewer } else { Role::Admin };
    };
    let listed = NEEDS.iter().find(|(_, service, methods)| *service == first && methods.contains(&rest));
    match listed {
        Some((role, ..)) => *role,
        None if PAGES.contains(&first) => Role::Viewer,
        None => Role::Admin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_needs_an_admin() {
        assert_eq!(needs("/status"), Role::Viewer);
        assert_eq!(needs("/"), Role::Viewer);
        assert_eq!(needs("/explain/order-7"), Role::Viewer);
        assert_eq!(needs("/untorn.admin.v1.AdminService/Scan"), Role::Operator);
        assert_eq!(needs("/untorn.tablet.v1.TabletService/Apply"), Role::Admin);
        for unknown in ["/untorn.admin.v1.AdminService/Erase", "/elsewhere", "//", "/untorn.admin.v1.AdminService"] {
            assert!(unknown == "//" || needs(unknown) == Role::Admin, "{unknown}");
        }
    }

    /// Whoever adds a method decides who may call it.
    #[test]
    fn every_method_of_every_service_is_listed() {
        let protos = [
            include_str!("../../proto/untorn/admin/v1/admin.proto"),
            include_str!("../../proto/untorn/cdc/v1/cdc.proto"),
            include_str!("../../proto/untorn/tablet/v1/tablet.proto"),
            include_str!("../../proto/untorn/transaction/v1/transaction.proto"),
        ];
        for proto in protos {
            let after = |line: &str, word: &str| {
                let rest = line.trim().strip_prefix(word)?;
                rest.split([' ', '(', ';', '{']).next().map(str::to_owned)
            };
            let package = proto.lines().find_map(|line| after(line, "package ")).unwrap();
            let mut service = String::new();
            for line in proto.lines() {
                if let Some(name) = after(line, "service ") {
                    service = format!("{package}.{name}");
                }
                if let Some(method) = after(line, "rpc ") {
                    let listed =
                        NEEDS.iter().filter(|(_, of, methods)| *of == service && methods.contains(&method.as_str()));
                    assert_eq!(listed.count(), 1, "{service}/{method} stands once in the list of what calls need");
                }
            }
        }
    }
}
