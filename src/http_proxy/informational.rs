//! Keeps an HTTP/1 connection open after an informational response (RFC 9110, section 15.2).

use pingora::protocols::http::ServerSession as HttpSession;

/// Called with `true` before an informational response, and with `false` before the final one.
/// Without it, Pingora closes the connection if a response, even `100 Continue`, begins before the
/// end of the request body.
pub fn keep_open_after_informational(session: &mut HttpSession, informational: bool) {
    if let HttpSession::H1(session) = session {
        session.set_close_on_response_before_downstream_finish(!informational);
    }
}
