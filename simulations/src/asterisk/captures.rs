//! Reads the captures of two real patched Asterisks (`tests/fixtures/asterisk`), for tests that hold the
//! model, and the adapter, to them.

/// One message of a capture, with the line ends that it had on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// `ip:port`.
    pub from: String,
    pub to: String,
    pub bytes: Vec<u8>,
}

impl Captured {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).expect("captures are UTF-8")
    }

    pub fn is_request(&self) -> bool {
        !self.bytes.starts_with(b"SIP/2.0")
    }

    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub fn branch(&self) -> &str {
        self.header("Via").and_then(|via| via.split_once("branch=")).map_or("", |(_, branch)| branch)
    }

    pub fn body(&self) -> &str {
        self.text().split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }
}

/// The messages of a capture in their order, retransmissions left out.
///
/// # Panics
///
/// If the text is no capture: its lengths must be right.
pub fn read(capture: &str) -> Vec<Captured> {
    let mut messages: Vec<Captured> = Vec::new();
    for part in capture.split("### ").skip(1) {
        let Some((line, message)) = part.split_once('\n') else { continue };
        let words: Vec<&str> = line.split(' ').collect();
        let &[_, "UDP", from, "->", to, len] = words.as_slice() else { continue };
        let (head, rest) = message.split_once("\n\n").expect("an empty line ends the headers");
        let head = head.replace('\n', "\r\n");
        let len: usize = len.strip_prefix("len=").and_then(|len| len.parse().ok()).expect("a length");
        let body = &rest[..len - head.len() - 4];
        let bytes = format!("{head}\r\n\r\n{body}").into_bytes();
        let captured = Captured { from: from.to_string(), to: to.to_string(), bytes };
        if !messages.contains(&captured) {
            messages.push(captured);
        }
    }
    messages
}
