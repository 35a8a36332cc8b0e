//! The base path of an upstream, in front of the request's target.

use pingora::Result;
use pingora::http::RequestHeader;

use crate::compile::Route;

/// Puts the upstream's base path before the target, which is of origin form; `OPTIONS *` has none.
pub(super) fn prepend_base_path(route: &Route, upstream: &mut RequestHeader) -> Result<()> {
    let Some(base) = route.upstream.base_path() else { return Ok(()) };
    if upstream.raw_path().starts_with(b"/") {
        let target = [base.as_bytes(), upstream.raw_path()].concat();
        upstream.set_raw_path(&target)?;
    }
    Ok(())
}
