//! A map of few entries, in one row: looked through, changed and copied at less cost than a tree.
//!
//! What a batch stages is copied with each batch, and a node shares a handful of families.

use std::borrow::Borrow;
use std::ops::Index;

/// Entries in the order of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Few<K, V>(Vec<(K, V)>);

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord, V> Few<K, V> {
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        self.0.binary_search_by(|(other, _)| other.borrow().cmp(key))
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().map(|at| &mut self.0[at].1)
    }

    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().map(|at| self.0.remove(at).1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }
}

/// Of two entries with one key the later counts.
impl<K: Ord, V> FromIterator<(K, V)> for Few<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut few = Self::default();
        for (key, value) in entries {
            few.insert(key, value);
        }
        few
    }
}

impl<K: Ord + Borrow<Q>, Q: Ord + ?Sized, V> Index<&Q> for Few<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("the key is there")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_answers_as_a_tree_does() {
        let (mut few, mut tree) = (Few::default(), BTreeMap::new());
        for n in 0..200_u32 {
            let key = n * 37 % 23;
            if n % 3 == 0 {
                assert_eq!(few.remove(&key), tree.remove(&key));
            } else {
                assert_eq!(few.insert(key, n), tree.insert(key, n));
            }
            if let (Some(a), Some(b)) = (few.get_mut(&7), tree.get_mut(&7)) {
                (*a, *b) = (*a + 1, *b + 1);
            }
            assert!(few.iter().eq(tree.iter()) && (0..23).all(|key| few.get(&key) == tree.get(&key)), "after {n}");
            assert_eq!(tree.clone().into_iter().rev().collect::<Few<_, _>>(), few);
        }
    }
}
