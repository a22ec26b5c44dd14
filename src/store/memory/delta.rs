//! What a transaction changes in one map, kept beside it.
//!
//! Most transactions change a handful of entries: these lie in one sorted row, which costs one small
//! allocation. A large transaction goes on in a tree, so that its cost stays n log n.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::RangeBounds;

/// How many changes a row holds before a tree takes over.
const ROW_MAX: usize = 16;

/// Changes by key; None takes the entry out. One of the two is always empty.
#[derive(Debug)]
pub(super) struct Delta<K, V> {
    row: Vec<(K, Option<V>)>,
    tree: BTreeMap<K, Option<V>>,
}

impl<K, V> Delta<K, V> {
    pub const NONE: Self = Self { row: Vec::new(), tree: BTreeMap::new() };
}

impl<K: Ord, V> Delta<K, V> {
    pub fn get<'a, Q: Ord + ?Sized>(&'a self, base: &'a BTreeMap<K, V>, key: &Q) -> Option<&'a V>
    where
        K: Borrow<Q>,
    {
        match self.change(key) {
            Some(change) => change.as_ref(),
            None => base.get(key),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.row.is_empty() && self.tree.is_empty()
    }

    /// What became of a key, if anything did.
    pub fn change<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&Option<V>>
    where
        K: Borrow<Q>,
    {
        match self.row.binary_search_by(|(other, _)| other.borrow().cmp(key)) {
            Ok(at) => Some(&self.row[at].1),
            Err(_) => self.tree.get(key),
        }
    }

    /// The changes in the range, in order.
    pub fn changes<'a, Q: Ord + ?Sized>(
        &'a self,
        range: impl RangeBounds<Q> + Clone + 'a,
    ) -> impl Iterator<Item = (&'a K, Option<&'a V>)>
    where
        K: Borrow<Q>,
    {
        let of_tree = self.tree.range(range.clone()).map(|(key, change)| (key, change.as_ref()));
        let of_row = self.row.iter().filter(move |(key, _)| range.contains(key.borrow()));
        of_row.map(|(key, change)| (key, change.as_ref())).chain(of_tree)
    }

    /// The entries of the range, changes included, in order.
    pub fn range<'a, Q: Ord + ?Sized>(
        &'a self,
        base: &'a BTreeMap<K, V>,
        range: impl RangeBounds<Q> + Clone + 'a,
    ) -> impl Iterator<Item = (&'a K, &'a V)>
    where
        K: Borrow<Q>,
    {
        let new = self.changes(range.clone());
        merged(base.range(range), new)
    }

    pub fn all<'a>(&'a self, base: &'a BTreeMap<K, V>) -> impl Iterator<Item = (&'a K, &'a V)> {
        self.range::<K>(base, ..)
    }

    pub fn set(&mut self, key: K, value: Option<V>) {
        if !self.tree.is_empty() {
            self.tree.insert(key, value);
            return;
        }
        match self.row.binary_search_by(|(other, _)| other.cmp(&key)) {
            Ok(at) => self.row[at].1 = value,
            Err(at) if self.row.len() < ROW_MAX => self.row.insert(at, (key, value)),
            Err(_) => {
                self.tree.extend(self.row.drain(..));
                self.tree.insert(key, value);
            }
        }
    }

    pub fn into_changes(self) -> impl Iterator<Item = (K, Option<V>)> {
        self.row.into_iter().chain(self.tree)
    }

    pub fn apply(self, base: &mut BTreeMap<K, V>) {
        for (key, change) in self.into_changes() {
            match change {
                Some(value) => base.insert(key, value),
                None => base.remove(&key),
            };
        }
    }

    pub fn last_key(&self) -> Option<&K> {
        self.row.last().map(|(key, _)| key).or(self.tree.last_key_value().map(|(key, _)| key))
    }
}

/// Two ordered sequences as one; where both name a key, the change counts.
pub(super) fn merged<K: Ord, V>(
    old: impl Iterator<Item = (K, V)>,
    new: impl Iterator<Item = (K, Option<V>)>,
) -> impl Iterator<Item = (K, V)> {
    let (mut old, mut new) = (old.peekable(), new.peekable());
    let both = std::iter::from_fn(move || {
        let Some((changed, _)) = new.peek() else { return old.next().map(|(key, value)| (key, Some(value))) };
        if old.peek().is_some_and(|(key, _)| key < changed) {
            return old.next().map(|(key, value)| (key, Some(value)));
        }
        old.next_if(|(key, _)| key == changed);
        new.next()
    });
    both.filter_map(|(key, value)| value.map(|value| (key, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_transaction_reads_as_a_small_one_does() {
        let base: BTreeMap<u32, u32> = (0..50).map(|n| (2 * n, n)).collect();
        let mut model = base.clone();
        let mut delta = Delta::NONE;
        for n in 0..60_u32 {
            let key = n * 37 % 101;
            let change = (n % 3 != 0).then_some(1_000 + n);
            match change {
                Some(value) => model.insert(key, value),
                None => model.remove(&key),
            };
            delta.set(key, change);
            assert!(delta.all(&base).eq(model.iter()), "after {n} changes");
            assert!(delta.range(&base, 20..=70).eq(model.range(20..=70)), "after {n} changes");
            assert!((0..101).all(|key| delta.get(&base, &key) == model.get(&key)), "after {n} changes");
        }
        let mut applied = base;
        delta.apply(&mut applied);
        assert_eq!(applied, model);
    }
}
