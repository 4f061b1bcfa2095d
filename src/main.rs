//! untorn
fn main() {}
