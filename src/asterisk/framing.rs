//! Messages out of a stream (RFC 3261 section 18.3): over TCP and TLS the length of the body tells where
//! the next message begins.
//!
//! Invariant: what is kept is less than [`MESSAGE_MAX_BYTES`], whatever the peer sends.

use super::message::{MESSAGE_MAX_BYTES, MessageError, skip_blank_lines};

/// Takes bytes as they come and gives whole messages. After an error the stream has lost its place and
/// must be closed.
#[derive(Debug, Default)]
pub struct Framer {
    kept: Vec<u8>,
    /// How much of what is kept has been searched for the end of the headers.
    searched: usize,
    /// Where the body begins, once that is known.
    body_at: Option<usize>,
    /// Where the message ends, once that is known: the headers are read once, however slowly a body comes.
    end: Option<usize>,
}

impl Framer {
    pub fn push(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
    }

    /// The next whole message, as bytes for [`super::message::Message::parse`]; None until more has come.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, MessageError> {
        let blank = self.kept.len() - skip_blank_lines(&self.kept).len();
        if blank > 0 {
            self.kept.drain(..blank);
            self.searched = 0;
        }
        let Some(body_at) = self.end_of_headers() else {
            return if self.kept.len() > MESSAGE_MAX_BYTES {
                Err(MessageError::TooLong(self.kept.len()))
            } else {
                Ok(None)
            };
        };
        let end = match self.end {
            Some(end) => end,
            // Without a length nobody knows where the message ends: on a stream it must be there.
            None => body_at + length_in(&self.kept[..body_at]).ok_or(MessageError::ContentLength)?,
        };
        if end > MESSAGE_MAX_BYTES {
            return Err(MessageError::TooLong(end));
        }
        self.end = Some(end);
        if self.kept.len() < end {
            return Ok(None);
        }
        let rest = self.kept.split_off(end);
        (self.searched, self.body_at, self.end) = (0, None, None);
        Ok(Some(std::mem::replace(&mut self.kept, rest)))
    }

    /// Where the body begins. Each byte is looked at once, however small the pieces are that it comes in.
    fn end_of_headers(&mut self) -> Option<usize> {
        if self.body_at.is_none() {
            // An end may have begun in the piece before.
            let from = self.searched.saturating_sub(2);
            let kept = &self.kept[from..];
            self.body_at = kept.iter().enumerate().filter(|(_, b)| **b == b'\n').find_map(|(at, _)| {
                let rest = &kept[at + 1..];
                let blank = if rest.starts_with(b"\n") { 1 } else { 2 };
                (blank == 1 || rest.starts_with(b"\r\n")).then_some(from + at + 1 + blank)
            });
            self.searched = self.kept.len();
        }
        self.body_at
    }
}

/// The length that the headers name. Only this one header is looked for: the message is parsed later.
fn length_in(headers: &[u8]) -> Option<usize> {
    let mut lengths = headers.split(|&b| b == b'\n').filter_map(|line| {
        let (name, value) = std::str::from_utf8(line).ok()?.split_once(':')?;
        let name = name.trim_end();
        let wanted = name.eq_ignore_ascii_case("Content-Length") || name.eq_ignore_ascii_case("l");
        wanted.then(|| value.trim().to_owned())
    });
    let length = lengths.next().filter(|_| lengths.next().is_none())?;
    let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    length.parse().ok().filter(|&length: &usize| digits && length <= MESSAGE_MAX_BYTES)
}
