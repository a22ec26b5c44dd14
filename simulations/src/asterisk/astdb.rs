//! The Asterisk database: paths and values, with the limits and the wild deletes of the real one.

use std::collections::BTreeMap;

/// The longest path, slashes included, is one byte less than the buffer (`MAX_DB_FIELD`).
const PATH_MAX_BYTES: usize = 255;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AstDb(BTreeMap<String, String>);

impl AstDb {
    /// False if family and key are too long: then nothing is stored.
    pub fn put(&mut self, family: &str, key: &str, value: &str) -> bool {
        let path = format!("/{family}/{key}");
        let fits = path.len() <= PATH_MAX_BYTES;
        if fits {
            self.0.insert(path, value.to_string());
        }
        fits
    }

    pub fn del(&mut self, family: &str, key: &str) -> bool {
        self.0.remove(&format!("/{family}/{key}")).is_some()
    }

    /// Deletes as SQL's `LIKE '/family/%'` does: `_` and `%` are wild, case does not count.
    pub fn deltree(&mut self, family: &str, tree: Option<&str>) -> usize {
        let pattern = tree.map_or_else(|| format!("/{family}/%"), |tree| format!("/{family}/{tree}/%"));
        let before = self.0.len();
        self.0.retain(|path, _| !like(pattern.as_bytes(), path.as_bytes()));
        before - self.0.len()
    }

    pub fn get(&self, family: &str, key: &str) -> Option<&str> {
        self.0.get(&format!("/{family}/{key}")).map(String::as_str)
    }

    /// Full paths and values under a family, in the order of paths.
    pub fn tree(&self, family: &str) -> impl Iterator<Item = (&str, &str)> {
        let prefix = format!("/{family}/");
        self.0.iter().filter(move |(path, _)| path.starts_with(&prefix)).map(|(path, value)| (&**path, &**value))
    }

    /// Everything, by path.
    pub fn paths(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

fn like(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'%', rest)) => (0..=text.len()).any(|at| like(rest, &text[at..])),
        Some((b'_', rest)) => !text.is_empty() && like(rest, &text[1..]),
        Some((wanted, rest)) => {
            text.first().is_some_and(|found| found.eq_ignore_ascii_case(wanted)) && like(rest, &text[1..])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_deleted_like_sql_does_it() {
        let mut db = AstDb::default();
        for path in ["a", "b/c"] {
            assert!(db.put("foo_x", path, "1") && db.put("FOO-X", path, "1") && db.put("other", path, "1"));
        }
        assert_eq!(db.deltree("foo_x", Some("b")), 2);
        assert_eq!(db.deltree("foo_x", None), 2);
        assert_eq!(db.paths().len(), 2);
    }

    #[test]
    fn a_path_that_is_too_long_is_not_stored() {
        let mut db = AstDb::default();
        assert!(db.put("foo", &"K".repeat(250), "v"));
        assert!(!db.put("foo", &"K".repeat(251), "v"));
    }
}
