//! Paths, families and values: what may be said at all.
//!
//! A [`Path`] is a full AstDB key, `/family/key`. A [`Family`] is a prefix of whole segments. Both are
//! checked when they are made, also when they are decoded, so that nothing else has to.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::eid::Eid;

/// The longest path of the protocol, in bytes. Local limits may be lower, never higher.
pub const PATH_MAX_BYTES: usize = 1_024;
/// The longest value of the protocol, in bytes.
pub const VALUE_MAX_BYTES: usize = 65_536;

/// The family under which the marks of shared families are seen (`main/db.c` of the patch).
pub const MARKS_FAMILY: &str = "__asterisk_shared_family";
/// The family of the cluster's own books: shared by every node, seen by nobody.
pub const BOOKS_FAMILY: &str = "__kinfolk";

/// Why a text is not a path, a family or a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("a path starts with '/' and names a family and a key, as in /family/key")]
    Shape,
    #[error("a path has no empty segment: segment {0} is empty")]
    EmptySegment(usize),
    #[error("a path or value holds no NUL byte: byte {0} is one")]
    Nul(usize),
    #[error("a path or value is UTF-8: byte {0} is not")]
    NotUtf8(usize),
    #[error("the path has {bytes} bytes, at most {max} are allowed")]
    PathTooLong { bytes: usize, max: usize },
    #[error("the value has {bytes} bytes, at most {max} are allowed")]
    ValueTooLong { bytes: usize, max: usize },
}

fn no_nul(text: &str) -> Result<(), PathError> {
    match text.bytes().position(|b| b == 0) {
        Some(at) => Err(PathError::Nul(at)),
        None => Ok(()),
    }
}

/// Checks the segments of `text`, which has no leading '/', and counts them.
fn check_segments(text: &str) -> Result<usize, PathError> {
    no_nul(text)?;
    let bytes = text.len() + 1;
    if bytes > PATH_MAX_BYTES {
        return Err(PathError::PathTooLong { bytes, max: PATH_MAX_BYTES });
    }
    let mut count = 0;
    for segment in text.split('/') {
        count += 1;
        if segment.is_empty() {
            return Err(PathError::EmptySegment(count));
        }
    }
    Ok(count)
}

/// UTF-8 or a [`PathError`] that says which byte is not.
pub fn utf8(bytes: &[u8]) -> Result<&str, PathError> {
    std::str::from_utf8(bytes).map_err(|error| PathError::NotUtf8(error.valid_up_to()))
}

/// A full AstDB key: `/family/key`, at least two segments, none empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(Arc<str>);

impl Path {
    pub fn new(text: &str) -> Result<Self, PathError> {
        let rest = text.strip_prefix('/').ok_or(PathError::Shape)?;
        if check_segments(rest)? < 2 {
            return Err(PathError::Shape);
        }
        Ok(Self(text.into()))
    }

    /// The path `/family/key`; both may hold '/'.
    pub fn of(family: &str, key: &str) -> Result<Self, PathError> {
        if key.is_empty() {
            return Err(PathError::Shape);
        }
        Self::new(&format!("/{family}/{key}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path without its leading '/'.
    fn relative(&self) -> &str {
        &self.0[1..]
    }

    /// The first segment: the change feed is kept by it.
    pub fn top(&self) -> &str {
        top(self.relative())
    }

    /// For `/__asterisk_shared_family/foo`: the family `foo` whose mark it is. None for any other path.
    pub fn marked_family(&self) -> Option<Result<Family, PathError>> {
        let family = self.relative().strip_prefix(MARKS_FAMILY)?.strip_prefix('/')?;
        Some(Family::new(family))
    }

    /// The EID this path is under, if its first segment is one: such a path is read-only.
    pub fn under_eid(&self) -> Option<Eid> {
        self.top().parse().ok()
    }

    /// For `/<EID>/foo/key`: the EID and `/foo/key`. None if the first segment is no EID or nothing of
    /// the shape of a path is left.
    pub fn split_eid(&self) -> Option<(Eid, Path)> {
        let eid = self.under_eid()?;
        let rest = &self.0[1 + Eid::TEXT_BYTES..];
        Path::new(rest).ok().map(|path| (eid, path))
    }

    /// What is left of the path under `family`, or None if it is not under it.
    pub fn key_in(&self, family: &Family) -> Option<&str> {
        self.relative().strip_prefix(family.as_str())?.strip_prefix('/')
    }
}

/// A prefix of whole segments, written without a leading '/': `foo` or `foo/bar`.
///
/// Used for shared families and wherever a subtree is named.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Family(Arc<str>);

impl Family {
    pub fn new(text: &str) -> Result<Self, PathError> {
        check_segments(text)?;
        Ok(Self(text.into()))
    }

    pub fn books() -> Self {
        Self(BOOKS_FAMILY.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn top(&self) -> &str {
        top(&self.0)
    }

    /// True if `path` is the family's own path or lies under it.
    pub fn covers(&self, path: &Path) -> bool {
        covers(&self.0, path.relative())
    }

    /// True if one of the two contains the other (or both are the same).
    pub fn overlaps(&self, other: &Family) -> bool {
        covers(&self.0, &other.0) || covers(&other.0, &self.0)
    }

    /// For `<EID>/foo`: the EID and `foo`, if anything is left.
    pub fn split_eid(&self) -> Option<(Eid, Option<Family>)> {
        let eid = self.top().parse().ok()?;
        let rest = self.0.get(Eid::TEXT_BYTES + 1..).and_then(|rest| Family::new(rest).ok());
        Some((eid, rest))
    }

    /// The family and every prefix of it, longest first.
    pub fn prefixes_of(path: &Path) -> impl Iterator<Item = &str> {
        let relative = path.relative();
        let mut end = Some(relative.len());
        std::iter::from_fn(move || {
            end = end.and_then(|end| relative[..end].rfind('/'));
            end.map(|end| &relative[..end])
        })
    }
}

fn top(relative: &str) -> &str {
    let end = relative.bytes().position(|byte| byte == b'/').unwrap_or(relative.len());
    &relative[..end]
}

fn covers(family: &str, relative: &str) -> bool {
    relative.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A value: UTF-8 without NUL, 0 to [`VALUE_MAX_BYTES`] bytes. An empty value is a value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(Arc<str>);

impl Value {
    pub fn new(text: &str) -> Result<Self, PathError> {
        no_nul(text)?;
        if text.len() > VALUE_MAX_BYTES {
            return Err(PathError::ValueTooLong { bytes: text.len(), max: VALUE_MAX_BYTES });
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Limits of this node's configuration, in bytes. They bind local input only: a merge accepts whatever
/// the protocol's maxima allow, else a node with smaller limits would differ for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub path_max_bytes: usize,
    pub value_max_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { path_max_bytes: PATH_MAX_BYTES, value_max_bytes: VALUE_MAX_BYTES }
    }
}

impl Limits {
    pub fn check(&self, path: &Path, value: &Value) -> Result<(), PathError> {
        let (bytes, max) = (path.as_str().len(), self.path_max_bytes);
        if bytes > max {
            return Err(PathError::PathTooLong { bytes, max });
        }
        let (bytes, max) = (value.as_str().len(), self.value_max_bytes);
        if bytes > max {
            return Err(PathError::ValueTooLong { bytes, max });
        }
        Ok(())
    }
}

/// The checked text types share everything but their check.
macro_rules! checked_text {
    ($type:ident) => {
        impl FromStr for $type {
            type Err = PathError;
            fn from_str(text: &str) -> Result<Self, PathError> {
                Self::new(text)
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Checked(Self::new))
            }
        }
    };
}

/// Checks a text where it stands: a decoder that has it in its input need not copy it first.
struct Checked<T>(fn(&str) -> Result<T, PathError>);

impl<T> de::Visitor<'_> for Checked<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        self.0(text).map_err(E::custom)
    }
}

checked_text!(Path);
checked_text!(Family);
checked_text!(Value);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_family_and_a_key() {
        let path = Path::new("/foo/b/c").expect("a good path");
        assert_eq!(path.top(), "foo");
        let foo = Family::new("foo").expect("a family");
        assert_eq!(path.key_in(&foo), Some("b/c"));
        assert_eq!(path, Path::of("foo", "b/c").expect("the same path"));
        for bad in ["", "/", "foo/a", "/foo"] {
            assert_eq!(
                Path::new(bad).expect_err(bad),
                if bad == "/" { PathError::EmptySegment(1) } else { PathError::Shape },
                "{bad}"
            );
        }
    }

    #[test]
    fn an_empty_segment_a_nul_and_a_long_path_are_refused_by_name() {
        assert_eq!(Path::new("/foo//a"), Err(PathError::EmptySegment(2)));
        assert_eq!(Path::new("/foo/"), Err(PathError::EmptySegment(2)));
        assert_eq!(Path::new("/f\0o/a"), Err(PathError::Nul(1)));
        let long = format!("/f/{}", "k".repeat(PATH_MAX_BYTES - 3));
        assert!(Path::new(&long).is_ok());
        assert_eq!(Path::new(&format!("{long}k")), Err(PathError::PathTooLong { bytes: 1_025, max: 1_024 }));
        assert_eq!(utf8(b"/foo/\xff"), Err(PathError::NotUtf8(5)));
    }

    #[test]
    fn a_family_covers_whole_segments_only() {
        let family = Family::new("foo").expect("a family");
        assert!(family.covers(&Path::new("/foo/a").expect("path")));
        assert!(!family.covers(&Path::new("/foobar/a").expect("path")));
        assert!(family.overlaps(&Family::new("foo/bar").expect("family")));
        assert!(!family.overlaps(&Family::new("foobar").expect("family")));
    }

    #[test]
    fn the_prefixes_of_a_path_come_longest_first() {
        let path = Path::new("/a/b/c").expect("path");
        assert_eq!(Family::prefixes_of(&path).collect::<Vec<_>>(), ["a/b", "a"]);
    }

    #[test]
    fn a_path_under_an_eid_is_told_apart() {
        let path = Path::new("/02:00:00:00:00:01/foo/k").expect("path");
        let (eid, rest) = path.split_eid().expect("under an EID");
        assert_eq!((eid.to_string().as_str(), rest.as_str()), ("02:00:00:00:00:01", "/foo/k"));
        assert_eq!(Path::new("/02:00:00:00:00:01/foo").expect("path").split_eid(), None);
        assert_eq!(Path::new("/foo/k").expect("path").under_eid(), None);
    }

    #[test]
    fn the_largest_value_is_taken_and_one_byte_more_is_not() {
        assert!(Value::new(&"v".repeat(VALUE_MAX_BYTES)).is_ok());
        assert!(Value::new("").is_ok());
        assert_eq!(
            Value::new(&"v".repeat(VALUE_MAX_BYTES + 1)),
            Err(PathError::ValueTooLong { bytes: 65_537, max: 65_536 })
        );
    }
}
