//! SIP messages: parse and print (RFC 3261 sections 7, 20 and 25).
//!
//! A parser of our own, for requests and responses as they travel in one datagram or as [`super::framing`]
//! cuts them out of a stream. It takes folded header lines, compact names and header names in any case,
//! and never panics, loops or allocates more than a small multiple of its bounded input.
//!
//! Only the shape is checked here: the start line, the header lines, `Content-Length`. What a header's
//! value means is asked of it in [`super::header`] when it matters.

/// The largest message that is read, in bytes: what one UDP datagram can carry.
pub const MESSAGE_MAX_BYTES: usize = 65_535;
/// The most header lines of a message, folded ones counted once.
pub const HEADERS_MAX: usize = 128;
/// The longest header line, name included, after unfolding, in bytes.
pub const HEADER_MAX_BYTES: usize = 8_192;

/// Why bytes are not a SIP message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("the message has {0} bytes, at most {MESSAGE_MAX_BYTES} are read")]
    TooLong(usize),
    #[error("no empty line ends the headers")]
    NoEnd,
    #[error("the start line is neither a request's nor a response's of SIP/2.0")]
    StartLine,
    #[error("the message has more than {HEADERS_MAX} headers")]
    TooManyHeaders,
    #[error("header {0} is longer than {HEADER_MAX_BYTES} bytes")]
    HeaderTooLong(usize),
    #[error("header {0} is not 'name: value' in UTF-8 without control characters")]
    Header(usize),
    #[error("Content-Length is not one number of at most {MESSAGE_MAX_BYTES}")]
    ContentLength,
    #[error("the body is cut off: {found} bytes of {wanted}")]
    CutOff { found: usize, wanted: usize },
}
