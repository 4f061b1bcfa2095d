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
            // citus_<coordinator group>_<process>_<transaction>_<connection>: one number a connection.
            "citus" => r"^(?<txn>citus_\d+_\d+_\d+)_\d+$",
            // pgjdbc writes an XA id as <format>_<global id>_<branch qualifier>, both in base64.
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
    fn a_pattern_without_the_group_is_refused() {
        assert!(GidPattern::parse("^(.+)$").unwrap_err().contains("`txn`"));
        assert!(GidPattern::parse("(").unwrap_err().contains("regular expression"));
    }
}
