//! The tables in the documentation say what the code says.

use std::path::PathBuf;
use untorn::config::keys;
use untorn::metrics;

/// Compares what stands between `<!-- name -->` and `<!-- end -->` with what the code generates; with `UNTORN_BLESS`
/// set, writes it there.
fn holds(file: &str, name: &str, generated: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let begin = format!("<!-- {name} -->\n");
    let start = text.find(&begin).unwrap_or_else(|| panic!("{file} has no {begin}")) + begin.len();
    let end = start + text[start..].find("<!-- end -->").unwrap_or_else(|| panic!("{file}: {name} does not end"));
    if &text[start..end] == generated {
        return;
    }
    assert!(
        std::env::var_os("UNTORN_BLESS").is_some(),
        "the table {name} in {file} is old: write it with UNTORN_BLESS=1 cargo test --test it docs"
    );
    std::fs::write(&path, format!("{}{generated}{}", &text[..start], &text[end..])).unwrap();
}

#[test]
fn the_tables_of_keys_and_metrics_are_those_of_the_code() {
    holds("src/docs/operations.md", "keys", &keys::markdown());
    holds("src/docs/operations.md", "metrics", &metrics::markdown());
}
