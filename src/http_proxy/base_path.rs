//! Prepends the base path of an upstream to the target of a request. It changes nothing else.

use pingora::Result;
use pingora::http::RequestHeader;

use crate::compile::Route;

/// Prepends the base path to a target in origin form. `OPTIONS *` is left alone.
pub(super) fn prepend_base_path(route: &Route, upstream: &mut RequestHeader) -> Result<()> {
    let Some(base) = route.upstream.base_path() else { return Ok(()) };
    if upstream.raw_path().starts_with(b"/") {
        let target = [base.as_bytes(), upstream.raw_path()].concat();
        upstream.set_raw_path(&target)?;
    }
    Ok(())
}
