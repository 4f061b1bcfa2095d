//! Which branches belong together: what of a gid names the transaction.

use regex::Regex;

/// Takes the transaction's id out of a gid.
#[derive(Clone, Debug, Default)]
pub struct GidPattern(Option<Regex>);

impl GidPattern {
    /// From the configuration: a regular expression with a group named `txn`, the preset `citus` or `xa`, or the empty
    /// text for the whole gid.
    ///
    /// # Errors
    /// A text that is no regular expression, or one without the group, with what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expression = match text {
            "" => return Ok(Self::default()),
            // citus_<group of the initiating node>_<its process>_<transaction>_<connection>: Citus gives every connection a
            // number, and the rest is the transaction's (PREPARED_TRANSACTION_NAME_FORMAT in its remote_transaction.c).
            "citus" => r"^(?<txn>citus_\d+_\d+_\d+)_\d+$",
            // pgjdbc writes an XA id as <format>_<global id>_<branch qualifier>, both in base64, whose alphabet has no
            // underscore (xidToString in its RecoveredXid.java). The branch qualifier may be empty.
            "xa" => r"^(?<txn>-?\d+_[A-Za-z0-9+/=]+)_[A-Za-z0-9+/=]*$",
            other => other,
        };
        let regex = Regex::new(expression)
            .map_err(|e| format!("{text:?} is neither \"citus\", \"xa\" nor a regular expression: {e}"))?;
        if !regex.capture_names().any(|name| name == Some("txn")) {
            return Err(format!("{text:?} has no group named `txn`: write for example '^(?<txn>.+)_[0-9]+$'"));
        }
        Ok(Self(Some(regex)))
    }

    /// The transaction's id: the group `txn`, or the whole gid where the pattern does not match.
    #[must_use]
    pub fn transaction<'g>(&self, gid: &'g str) -> &'g str {
        let group = self.0.as_ref().and_then(|regex| regex.captures(gid)).and_then(|captures| captures.name("txn"));
        group.map_or(gid, |group| group.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_and_patterns_take_the_part_that_the_branches_share() {
        let citus = GidPattern::parse("citus").unwrap();
        assert_eq!(citus.transaction("citus_0_8512_7_21"), "citus_0_8512_7");
        assert_eq!(citus.transaction("mine"), "mine");
        let xa = GidPattern::parse("xa").unwrap();
        assert_eq!(xa.transaction("131077_Z3RyaWQ=_YnF1YWw="), "131077_Z3RyaWQ=");
        let own = GidPattern::parse(r"^(?<txn>.+)@\w+$").unwrap();
        assert_eq!(own.transaction("pay-1@a"), own.transaction("pay-1@b"));
        assert_eq!(GidPattern::parse("").unwrap().transaction("pay-1@a"), "pay-1@a");
    }

    #[test]
    fn what_transaction_managers_write_falls_into_transactions() {
        let citus = GidPattern::parse("citus").unwrap();
        // A coordinator's backend 87551, its transaction 10, over two connections; and its next transaction.
        let of = |gid: &str| citus.transaction(gid).to_owned();
        assert_eq!(of("citus_0_87551_10_15"), of("citus_0_87551_10_16"));
        assert_ne!(of("citus_0_87551_10_15"), of("citus_0_87551_11_17"));
        assert_ne!(of("citus_0_87551_10_15"), of("citus_2_87551_10_15"), "another node initiated it");
        assert_eq!(of("citus_4294967295_4294967295_18446744073709551615_4294967295").len(), 48);

        let xa = GidPattern::parse("xa").unwrap();
        let of = |gid: &str| xa.transaction(gid).to_owned();
        // Global ids and branch qualifiers in the layouts of Narayana (0x20005), Atomikos ("ATOM") and Bitronix ("Btnx").
        for (global, one, two) in [
            (
                "131077_AAAAAAAAAAAAAP//fwAAAaPz0uFlobLDAAAAKjE=",
                "AAAAAAAAAAAAAP//fwAAAaPz0uFlobLDAAAAKjUAAAAA",
                "AAAAAAAAAAAAAP//fwAAAaPz0uFlobLDAAAAKjYAAAAA",
            ),
            ("1096044365_MTAuMC4wLjcudG0xNjMyMjk0NzYwMDAwMDAwNDI=", "MTAuMC4wLjcudG0x", "MTAuMC4wLjcudG0y"),
            ("1114926712_bm9kZS0xAAABjT8qG0wAAAAH", "bm9kZS0xAAABjT8qG0wAAAAI", "bm9kZS0xAAABjT8qG0wAAAAJ"),
            ("-1_Zw==", "", "YQ=="),
        ] {
            assert_eq!(of(&format!("{global}_{one}")), global);
            assert_eq!(of(&format!("{global}_{two}")), global);
        }
        assert_ne!(of("131077_Zw==_YQ=="), of("131078_Zw==_YQ=="), "another manager's format");
        assert_eq!(of("my_own_gid"), "my_own_gid", "what no driver wrote stays whole");
    }

    #[test]
    fn a_pattern_without_the_group_is_refused() {
        assert!(GidPattern::parse("^(.+)$").unwrap_err().contains("`txn`"));
        assert!(GidPattern::parse("(").unwrap_err().contains("regular expression"));
    }
}
