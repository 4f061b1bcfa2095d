//! The command line of `untorn demo`.

use crate::admin::Format;
use clap::Args;
use std::path::PathBuf;

/// Shows whole transactions arriving, in one process and without set-up.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// How long the source's users work [default: until q or Ctrl-C on a terminal, else 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
    /// Tablets of the source universe
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub source_tablets: u16,
    /// Tablets of the replica universe
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub replica_tablets: u16,
    /// Decide transactions as soon as their Commit record is known: readers will see parts of them
    #[arg(long)]
    pub without_gate: bool,
    /// Keep log and tablets in this folder, which must be new or empty [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// A screen or plain lines and a summary, or JSON with the result on the last line
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        demo: DemoArgs,
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let args = Cli::try_parse_from(["demo"]).ok().map(|cli| cli.demo).unwrap();
        assert_eq!((args.seconds, args.source_tablets, args.replica_tablets), (None, 4, 3));
        assert_eq!((args.without_gate, args.dir, args.format), (false, None, Format::Text));
    }

    #[test]
    fn numbers_that_make_no_demo_are_refused() {
        for wrong in ["--seconds=0", "--source-tablets=0", "--replica-tablets=65", "--format=xml"] {
            assert!(Cli::try_parse_from(["demo", wrong]).is_err(), "{wrong}");
        }
    }
}
