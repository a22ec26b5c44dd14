//! Whom and what the configuration trusts, as the node goes by it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Config;
use crate::core::eid::Eid;
use crate::core::path::Family;
use crate::core::trust::{Allow, Grants, Trust};

/// A key of `[allow]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Who {
    Node(Eid),
    /// `*`: every node that is not named.
    Others,
}

impl FromStr for Who {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Who::Others);
        }
        text.parse()
            .map(Who::Node)
            .map_err(|_| format!("'{text}' is neither an EID, as in 02:00:00:00:01:00, nor \"*\""))
    }
}

impl TryFrom<String> for Who {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Who> for String {
    fn from(who: Who) -> String {
        who.to_string()
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Node(eid) => eid.fmt(f),
            Who::Others => f.write_str("*"),
        }
    }
}

fn allow(list: &BTreeMap<Who, Vec<Family>>) -> Allow {
    let mut allow = Allow::default();
    for (who, families) in list {
        let grants = Grants::only(families.iter().cloned());
        match who {
            Who::Node(eid) => _ = allow.by_eid.insert(*eid, grants),
            Who::Others => allow.others = grants,
        }
    }
    allow
}

impl Config {
    pub fn trust(&self) -> Trust {
        Trust { allow: allow(&self.allow), revoked: self.tls.revoked.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allow_list_names_nodes_and_the_others() {
        let text = "[allow]\n\"02:00:00:00:01:00\" = [\"CF\"]\n\"*\" = []\n[tls]\nrevoked = [\"02:00:00:00:09:00\"]\n\
                    [cluster]\nadvertise = \"a:1\"\n";
        let trust = Config::parse("t", text).expect("good").trust();
        let eid: Eid = "02:00:00:00:01:00".parse().expect("an EID");
        assert_eq!(trust.allow.of(eid), &Grants::only([Family::new("CF").expect("a family")]));
        assert_eq!(trust.allow.others, Grants::only([]));
        assert_eq!(trust.revoked.len(), 1);
    }

    #[test]
    fn a_key_of_the_allow_list_that_is_no_eid_is_named() {
        let error = Config::parse("t", "[allow]\nnode1 = [\"CF\"]\n").expect_err("refused").to_string();
        assert!(error.contains("'node1' is neither an EID"), "{error}");
    }
}
