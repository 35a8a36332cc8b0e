//! The committed copy of the admin API's document is what the program serves. After a change of the API:
//! `UPDATE=1 cargo test --test openapi` writes it anew.

use std::path::Path;

#[test]
fn the_committed_document_is_the_one_that_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/openapi.json");
    let made = keylatch::admin::document();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(committed == made, "src/admin/openapi.json is not what the API is; `UPDATE=1 cargo test --test openapi` writes it anew");
}
