//! Which versions of the protocol a node speaks, and which one two nodes speak with each other.
//!
//! Each side's hello names the versions that it speaks, without gaps; the greatest that both speak is spoken on
//! that connection. So a cluster is upgraded node by node: a new program goes on speaking the version before until
//! no node is left that needs it. The hello itself, and its frame, are of version 1 for ever.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::codec::PROTOCOL_VERSION;

/// The oldest version that this program still speaks.
pub const PROTOCOL_VERSION_MIN: u8 = 1;

/// A range of versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    pub min: u8,
    pub max: u8,
}

impl Versions {
    /// What this program speaks.
    pub const SPOKEN: Versions = Versions { min: PROTOCOL_VERSION_MIN, max: PROTOCOL_VERSION };

    /// The version to speak with a peer that speaks `theirs`; none: there is none.
    pub fn common(self, theirs: Versions) -> Option<u8> {
        let (min, max) = (self.min.max(theirs.min), self.max.min(theirs.max));
        if mutant!(OwnVersionSpoken) {
            return Some(self.max);
        }
        (min <= max).then_some(max)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn versions(min: u8, max: u8) -> Versions {
        Versions { min, max }
    }

    #[test]
    fn the_greatest_version_that_both_speak_is_spoken() {
        for (ours, theirs, common) in [
            (versions(1, 1), versions(1, 1), Some(1)),
            (versions(1, 1), versions(1, 3), Some(1)),
            (versions(1, 3), versions(2, 2), Some(2)),
            (versions(2, 4), versions(3, 5), Some(4)),
            (versions(1, 1), versions(2, 3), None),
            (versions(3, 2), versions(1, 9), None),
        ] {
            assert_eq!(ours.common(theirs), common, "{ours} and {theirs}");
            assert_eq!(theirs.common(ours), common, "both sides come to the same");
        }
    }

    #[test]
    fn this_program_speaks_with_itself() {
        assert_eq!(Versions::SPOKEN.common(Versions::SPOKEN), Some(PROTOCOL_VERSION));
    }
}
