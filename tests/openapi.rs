//! The committed OpenAPI document equals the one that the program serves. After a change of the API,
//! `UPDATE=1 cargo test --test openapi` writes it.

use std::path::Path;

#[test]
fn the_committed_document_is_the_one_that_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/openapi.json");
    let served = keylatch::admin::document();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &served).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(committed == served, "src/admin/openapi.json is out of date; `UPDATE=1 cargo test --test openapi` writes it");
}
