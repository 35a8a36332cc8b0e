//! Informational responses (RFC 9110, section 15.2), which leave the connection as it is.

use pingora::protocols::http::ServerSession as HttpSession;

/// Tells the session whether the next response is informational. Pingora closes a connection on
/// which a response begins before the end of the request body, and counts `100 Continue` as one.
pub fn expect_further_response(session: &mut HttpSession, informational: bool) {
    if let HttpSession::H1(session) = session {
        session.set_close_on_response_before_downstream_finish(!informational);
    }
}
