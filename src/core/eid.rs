//! The 6-byte Entity ID of a server, Asterisk's own notion (`main/utils.c`, `ast_str_to_eid`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An Entity ID: six bytes, printed as Asterisk prints it, lowercase, `00:11:22:aa:bb:cc`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Eid([u8; Eid::BYTES]);

/// By their bytes. Compared as one number, since the comparison of six bytes is a call: every stamp and every
/// cursor is ordered by an EID somewhere.
impl Ord for Eid {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let number = |Eid([a, b, c, d, e, f]): &Eid| u64::from_be_bytes([0, 0, *a, *b, *c, *d, *e, *f]);
        number(self).cmp(&number(other))
    }
}

impl PartialOrd for Eid {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Why a text is not an EID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an EID: six two-digit hexadecimal bytes joined by ':' are wanted, as in 02:00:00:00:00:01")]
pub struct EidError(String);

impl Eid {
    /// How many bytes an EID has.
    pub const BYTES: usize = 6;
    /// How many bytes its text has.
    pub const TEXT_BYTES: usize = 17;

    pub const fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    pub const fn bytes(self) -> [u8; Self::BYTES] {
        self.0
    }

    /// True for `00:00:00:00:00:00`, which Asterisk reads as "no EID" (`ast_eid_is_empty`).
    pub fn is_empty(self) -> bool {
        self.0 == [0; Self::BYTES]
    }

    /// The text without colons, as used in file names.
    pub fn compact(self) -> String {
        self.to_string().replace(':', "")
    }
}

impl FromStr for Eid {
    type Err = EidError;

    /// Takes exactly what Asterisk prints, in either case. Asterisk's own parser is laxer (one digit,
    /// leading blanks) and then stores under an EID that no server has, so we are not.
    fn from_str(text: &str) -> Result<Self, EidError> {
        let fault = || EidError(text.chars().take(64).collect());
        let mut bytes = [0; Self::BYTES];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(fault)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(fault());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| fault())?;
        }
        if parts.next().is_some() {
            return Err(fault());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Eid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Eid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text where a person may read it (JSON, TOML), six plain bytes on the wire and on disk.
impl Serialize for Eid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Eid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(de::Error::custom)
        } else {
            <[u8; Self::BYTES]>::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_printed_in_lowercase_as_asterisk_prints_it() {
        let eid: Eid = "02:00:0A:Bc:00:ff".parse().expect("a good EID");
        assert_eq!(eid.to_string(), "02:00:0a:bc:00:ff");
        assert_eq!(eid.compact(), "02000abc00ff");
    }

    #[test]
    fn what_asterisk_would_misread_is_refused_and_named() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02-00-00-00-00-01",
            "2:0:0:0:0:1",
            "02:00:00:00:00:0g",
            "+2:00:00:00:00:01",
        ] {
            let error = text.parse::<Eid>().expect_err(text);
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
    }
}
