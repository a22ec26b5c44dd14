//! A table by family and host: what a process keeps for each of its streams.
//!
//! A row per family, filled as far as it is used. In a mesh of a thousand nodes there are a million entries, and a
//! frame finds its own at once; in a tree the search cost more than the frame did.

use crate::history::{FamilyIx, HostId};

pub struct Table<T> {
    rows: Vec<Vec<Option<T>>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { rows: Vec::new() }
    }
}

impl<T> Table<T> {
    pub fn get(&self, family: FamilyIx, host: HostId) -> Option<&T> {
        self.rows.get(family)?.get(host)?.as_ref()
    }

    pub fn get_mut(&mut self, family: FamilyIx, host: HostId) -> Option<&mut T> {
        self.rows.get_mut(family)?.get_mut(host)?.as_mut()
    }

    pub fn insert(&mut self, family: FamilyIx, host: HostId, entry: T) {
        if self.rows.len() <= family {
            self.rows.resize_with(family + 1, Vec::new);
        }
        let row = &mut self.rows[family];
        if row.len() <= host {
            row.resize_with(host + 1, || None);
        }
        row[host] = Some(entry);
    }

    pub fn remove(&mut self, family: FamilyIx, host: HostId) -> Option<T> {
        self.rows.get_mut(family)?.get_mut(host)?.take()
    }

    /// The number of hosts up to the last one of a family that ever had an entry.
    pub fn width(&self, family: FamilyIx) -> usize {
        self.rows.get(family).map_or(0, Vec::len)
    }

    /// The number of families up to the last one that ever had an entry.
    pub fn families(&self) -> usize {
        self.rows.len()
    }

    fn hosts(&self) -> usize {
        self.rows.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// By family, then host.
    pub fn by_family(&self) -> impl Iterator<Item = ((FamilyIx, HostId), &T)> {
        let row = |(family, row): (FamilyIx, &'_ Vec<Option<T>>)| (0..row.len()).map(move |host| (family, host));
        let places = self.rows.iter().enumerate().flat_map(row);
        places.filter_map(|(family, host)| Some(((family, host), self.get(family, host)?)))
    }

    /// What there is for a family, by host.
    pub fn of_family(&self, family: FamilyIx) -> impl Iterator<Item = (HostId, &T)> {
        let row = self.rows.get(family).into_iter().flatten().enumerate();
        row.filter_map(|(host, entry)| Some((host, entry.as_ref()?)))
    }

    /// By host, then family.
    pub fn by_host(&self) -> impl Iterator<Item = ((HostId, FamilyIx), &T)> {
        let places = (0..self.hosts()).flat_map(|host| (0..self.rows.len()).map(move |family| (host, family)));
        places.filter_map(|(host, family)| Some(((host, family), self.get(family, host)?)))
    }

    /// What there is for a host, by family.
    pub fn of_host_mut(&mut self, host: HostId) -> impl Iterator<Item = (FamilyIx, &mut T)> {
        let rows = self.rows.iter_mut().enumerate();
        rows.filter_map(move |(family, row)| Some((family, row.get_mut(host)?.as_mut()?)))
    }

    pub fn retain(&mut self, mut keeps: impl FnMut((HostId, FamilyIx), &T) -> bool) {
        for (family, row) in self.rows.iter_mut().enumerate() {
            for (host, entry) in row.iter_mut().enumerate() {
                if entry.as_ref().is_some_and(|there| !keeps((host, family), there)) {
                    *entry = None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_where_they_were_put_and_told_in_either_order() {
        let mut table = Table::default();
        for (family, host) in [(1, 4), (0, 2), (1, 0)] {
            table.insert(family, host, 10 * family + host);
        }
        assert_eq!(table.by_family().map(|(at, _)| at).collect::<Vec<_>>(), [(0, 2), (1, 0), (1, 4)]);
        assert_eq!(table.by_host().map(|(at, _)| at).collect::<Vec<_>>(), [(0, 1), (2, 0), (4, 1)]);
        assert_eq!((table.get(1, 4), table.get(1, 3), table.get(7, 7)), (Some(&14), None, None));
        assert_eq!(table.of_host_mut(2).map(|(family, entry)| (family, *entry)).collect::<Vec<_>>(), [(0, 2)]);
        assert_eq!((table.remove(1, 4), table.remove(1, 4)), (Some(14), None));
        table.retain(|(host, _), _| host != 2);
        assert_eq!(table.by_family().map(|(_, entry)| *entry).collect::<Vec<_>>(), [10]);
    }
}
