//! How fast one Asterisk may send updates.

use super::event::Moment;

/// A bucket that holds a second's worth. Counted in thousandths of an update.
#[derive(Clone, Debug)]
pub struct Rate {
    per_s: u64,
    thousandths: i64,
    at: Moment,
}

impl Rate {
    pub fn new(per_s: u32) -> Self {
        let per_s = u64::from(per_s.max(1));
        Self { per_s, thousandths: i64::try_from(per_s * 1_000).expect("from 32 bits"), at: 0 }
    }

    /// Takes out `count`; gives for how many milliseconds the sender has to wait until they are paid for.
    pub fn take(&mut self, count: u64, now: Moment) -> u64 {
        let full = self.per_s as i64 * 1_000;
        let came = now.saturating_sub(self.at).min(60_000) * self.per_s;
        self.at = self.at.max(now);
        self.thousandths = (self.thousandths + came as i64).min(full);
        let spent = count.min(1 << 40) as i64 * 1_000;
        self.thousandths = self.thousandths.saturating_sub(spent);
        if self.thousandths >= 0 { 0 } else { self.thousandths.unsigned_abs().div_ceil(self.per_s) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_free_and_what_is_more_waits_for_its_time() {
        let mut rate = Rate::new(10);
        assert_eq!(rate.take(10, 0), 0);
        assert_eq!(rate.take(1, 0), 100);
        assert_eq!(rate.take(5, 0), 600, "those before it are waited for as well");
        assert_eq!(rate.take(0, 600), 0);
        assert_eq!(rate.take(1, 10_000), 0);
    }

    #[test]
    fn no_count_and_no_time_makes_it_overflow() {
        let mut rate = Rate::new(u32::MAX);
        for (count, now) in [(u64::MAX, 0), (u64::MAX, u64::MAX), (0, 0), (u64::MAX, u64::MAX)] {
            let _ = rate.take(count, now);
        }
    }
}
