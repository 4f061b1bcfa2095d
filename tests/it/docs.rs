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

/// Every name of a test that the table of behaviours gives is one of a campaign, a function, a fault, a planted bug, a
/// script or a file.
#[test]
fn every_test_in_the_table_of_behaviours_is_there() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("tests"), root.join("src")];
    let (mut text, mut stems) = (String::new(), Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "txt") {
                stems.push(path.file_stem().unwrap().to_string_lossy().into_owned());
                text += &std::fs::read_to_string(&path).unwrap();
            }
        }
    }
    let table = std::fs::read_to_string(root.join("src/docs/behaviours.md")).unwrap();
    let tests = table.lines().filter(|line| line.starts_with("| ")).filter_map(|line| line.split('|').nth(2));
    let names: Vec<&str> = tests.flat_map(|tests| tests.split('`').skip(1).step_by(2)).collect();
    assert!(names.len() > 50, "{names:?}");
    for name in names {
        let is_there = root.join(name).exists()
            || stems.iter().any(|stem| stem == name)
            || text.contains(&format!("fn {name}("))
            || text.contains(&format!("\n    {name},\n"));
        assert!(is_there, "no test, fault or bug is called {name}");
    }
}
