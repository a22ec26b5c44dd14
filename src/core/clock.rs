//! Hybrid logical clock and stamps (Kulkarni et al., "Logical Physical Clocks", 2014).
//!
//! A wrapper over `hlc-gen` that is fed with the time instead of reading it, and that never fails to
//! tick: where the crate's counter is full it carries into the next millisecond.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use hlc_gen::source::ManualClock;
use hlc_gen::{HlcGenerator, HlcTimestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::eid::Eid;

/// Wall-clock time in milliseconds since 1970, as fed to the core.
pub type UnixMs = u64;

/// The default for how far a stamp may lie in the future and still move the clock.
pub const MAX_CLOCK_DRIFT_DEFAULT_MS: NonZeroU64 = NonZeroU64::new(60_000).expect("not zero");

/// `hlc-gen` counts from 2024-01-01; an earlier wall clock is read as that moment.
const EPOCH_MS: u64 = 1_704_067_200_000;
/// The latest millisecond a stamp may name: the crate's limit (the year 2109).
const LAST_MS: u64 = (1 << 42) - 1;
/// A wall clock beyond this is read as this, so that a tick always has room to carry: a day before the end.
const LAST_WALL_MS: u64 = LAST_MS - 86_400_000;
const COUNTER_BITS: u32 = 22;
const COUNTER_MAX: u64 = (1 << COUNTER_BITS) - 1;

/// One moment of the hybrid clock: 42 bits of milliseconds since 2024 and a 22-bit counter.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hlc(u64);

impl Hlc {
    pub const ZERO: Hlc = Hlc(0);
    /// The protocol's maximum. A stamp above it is malformed, for everyone alike.
    pub const MAX: Hlc = Hlc(((LAST_MS - EPOCH_MS) << COUNTER_BITS) | COUNTER_MAX);

    pub fn from_parts(unix_ms: UnixMs, counter: u64) -> Option<Self> {
        let unix_ms = i64::try_from(unix_ms).ok()?;
        HlcTimestamp::from_parts(unix_ms, counter).ok().map(|stamp| Self(stamp.as_u64()))
    }

    pub fn unix_ms(self) -> UnixMs {
        (self.0 >> COUNTER_BITS) + EPOCH_MS
    }

    pub fn counter(self) -> u64 {
        self.0 & COUNTER_MAX
    }

    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// The moment of this raw form, or None above the protocol's maximum.
    pub fn from_u64(raw: u64) -> Option<Self> {
        (raw <= Self::MAX.0).then_some(Self(raw))
    }

    /// The next moment; a full counter carries into the next millisecond, since the counter is the low
    /// half of the number. None only at [`Hlc::MAX`].
    pub fn next(self) -> Option<Self> {
        (self < Self::MAX).then(|| Self(self.0 + 1))
    }

    fn generator_form(self) -> HlcTimestamp {
        HlcTimestamp::try_from(self.0).expect("an Hlc is within the generator's range")
    }
}

impl From<HlcTimestamp> for Hlc {
    fn from(stamp: HlcTimestamp) -> Self {
        Self(stamp.as_u64())
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.unix_ms(), self.counter())
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hlc {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Hlc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = u64::deserialize(deserializer)?;
        Self::from_u64(raw)
            .ok_or_else(|| de::Error::custom(format_args!("stamp {raw:#x} is above the protocol's maximum")))
    }
}

/// What decides between two writes: totally ordered, never repeated by correct nodes.
///
/// The field order is the order of comparison. The hash of the value only decides between clones of
/// one EID (see `register`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    pub hlc: Hlc,
    pub eid: Eid,
    pub hash: u64,
}

/// `<unix ms>.<counter>@<eid>#<16 hex digits of the value hash>`
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}#{:016x}", self.hlc, self.eid, self.hash)
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a stamp.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a stamp: <unix ms>.<counter>@<eid>#<16 hex digits> is wanted")]
pub struct StampError(String);

impl FromStr for Stamp {
    type Err = StampError;

    fn from_str(text: &str) -> Result<Self, StampError> {
        let parse = || {
            let (time, rest) = text.split_once('@')?;
            let (ms, counter) = time.split_once('.')?;
            let (eid, hash) = rest.split_once('#')?;
            if hash.len() != 16 {
                return None;
            }
            Some(Stamp {
                hlc: Hlc::from_parts(ms.parse().ok()?, counter.parse().ok()?)?,
                eid: eid.parse().ok()?,
                hash: u64::from_str_radix(hash, 16).ok()?,
            })
        };
        parse().ok_or_else(|| StampError(text.chars().take(96).collect()))
    }
}

/// What became of a stamp that the clock was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// The clock is now at or beyond it.
    Yes,
    /// It lies further in the future than `max_clock_drift`: the record is merged all the same, but the
    /// clock does not follow it.
    FarFuture { ahead_ms: u64 },
}

/// The hybrid clock of one node.
pub struct Clock {
    generator: HlcGenerator<ManualClock>,
    max_drift_ms: NonZeroU64,
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("last", &self.last()).field("max_drift_ms", &self.max_drift_ms).finish()
    }
}

impl Clock {
    pub fn new(max_drift_ms: NonZeroU64) -> Self {
        // Our own drift check comes first and knows the alarm; the crate's is a second fence behind it.
        let crate_max_drift = usize::try_from(max_drift_ms.get()).unwrap_or(usize::MAX);
        Self { generator: HlcGenerator::manual(crate_max_drift), max_drift_ms }
    }

    /// The greatest moment made or observed so far.
    pub fn last(&self) -> Hlc {
        self.generator.timestamp().into()
    }

    /// The next moment: greater than every one made or observed before, at or after `now`.
    pub fn tick(&mut self, now: UnixMs) -> Hlc {
        self.set_wall(now);
        match self.generator.next_timestamp() {
            Some(tick) => tick.into(),
            None => self.carry_beyond(self.last(), now),
        }
    }

    /// Shows the clock a stamp that arrived, so that later writes here beat it.
    pub fn observe(&mut self, stamp: Hlc, now: UnixMs) -> Observed {
        let ahead_ms = ahead_ms(stamp, now);
        if ahead_ms > self.max_drift_ms.get() && !mutant!(FutureStampObserved) {
            return Observed::FarFuture { ahead_ms };
        }
        if stamp > self.last() {
            self.set_wall(now);
            if self.generator.update(&stamp.generator_form()).is_err() {
                // The peer's counter is full, and within the drift window a peer can bring that about.
                self.carry_beyond(stamp, now);
            }
        }
        Observed::Yes
    }

    /// Seeds the clock at start with the greatest stamp of the store that is not beyond
    /// `now + max_clock_drift`. `update` refuses what is ahead of the wall clock by more than its limit
    /// and so fails when the wall clock went back: the clock is set to the stored time for it, and back.
    pub fn seed(&mut self, greatest: Hlc, now: UnixMs) {
        if greatest > self.last() {
            self.generator.set_current_timestamp(signed(greatest.unix_ms()));
            if self.generator.update(&greatest.generator_form()).is_err() {
                self.carry_beyond(greatest, now);
            }
        }
        self.set_wall(now);
    }

    /// Whether a stamp would move the clock if it were observed now.
    pub fn is_near(&self, stamp: Hlc, now: UnixMs) -> bool {
        ahead_ms(stamp, now) <= self.max_drift_ms.get()
    }

    /// The counter of `full`'s millisecond is full: go on in the next one.
    fn carry_beyond(&mut self, full: Hlc, now: UnixMs) -> Hlc {
        self.generator.set_current_timestamp(signed(full.unix_ms() + 1));
        let tick = self.generator.next_timestamp().expect("a fresh millisecond has room");
        self.set_wall(now);
        tick.into()
    }

    fn set_wall(&mut self, now: UnixMs) {
        self.generator.set_current_timestamp(signed(now.clamp(EPOCH_MS, LAST_WALL_MS)));
    }
}

fn ahead_ms(stamp: Hlc, now: UnixMs) -> u64 {
    stamp.unix_ms().saturating_sub(now.clamp(EPOCH_MS, LAST_WALL_MS))
}

fn signed(unix_ms: UnixMs) -> i64 {
    i64::try_from(unix_ms).expect("clamped to 42 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = 1_790_000_000_000;

    fn clock() -> Clock {
        Clock::new(MAX_CLOCK_DRIFT_DEFAULT_MS)
    }

    fn at(unix_ms: UnixMs, counter: u64) -> Hlc {
        Hlc::from_parts(unix_ms, counter).expect("in range")
    }

    #[test]
    fn ticks_only_grow_also_when_the_wall_clock_goes_back() {
        let mut clock = clock();
        let first = clock.tick(NOW);
        let second = clock.tick(NOW - 3_600_000);
        let third = clock.tick(0);
        assert_eq!(first, at(NOW, 0));
        assert!(first < second && second < third, "{first} {second} {third}");
    }

    #[test]
    fn a_full_counter_carries_into_the_next_millisecond() {
        let mut clock = clock();
        clock.seed(at(NOW, COUNTER_MAX - 1), NOW);
        let before = clock.last();
        let tick = clock.tick(NOW);
        assert!(tick > before);
        assert_eq!(tick, at(NOW + 1, 0));
        assert_eq!(clock.tick(NOW), at(NOW + 1, 1), "the wall clock was set back to now");
    }

    #[test]
    fn a_peer_with_a_full_counter_cannot_stop_the_clock() {
        let mut clock = clock();
        let full = at(NOW + 50_000, COUNTER_MAX);
        assert_eq!(clock.observe(full, NOW), Observed::Yes);
        assert!(clock.tick(NOW) > full);
    }

    #[test]
    fn a_far_future_stamp_does_not_move_the_clock() {
        let mut clock = clock();
        let year_ahead = at(NOW + 31_536_000_000, 0);
        assert_eq!(clock.observe(year_ahead, NOW), Observed::FarFuture { ahead_ms: 31_536_000_000 });
        assert_eq!(clock.tick(NOW), at(NOW, 0));
        assert_eq!(clock.observe(at(NOW + 60_000, 0), NOW), Observed::Yes, "the limit itself is within it");
    }

    #[test]
    fn seeding_works_when_the_wall_clock_went_back() {
        let mut clock = clock();
        let stored = at(NOW, 7);
        clock.seed(stored, NOW - 3_600_000);
        assert!(clock.tick(NOW - 3_600_000) > stored);
    }

    #[test]
    fn the_clock_ticks_at_the_ends_of_its_range() {
        let mut clock = clock();
        let first = clock.tick(0);
        assert!(clock.tick(u64::MAX) > first);
        assert!(clock.tick(u64::MAX).unix_ms() <= LAST_MS);
        assert_eq!(Hlc::MAX.next(), None);
        assert_eq!(Hlc::from_u64(Hlc::MAX.as_u64() + 1), None);
        assert_eq!(at(NOW, COUNTER_MAX).next(), Some(at(NOW + 1, 0)));
    }

    #[test]
    fn a_stamp_is_read_as_it_is_printed() {
        let stamp = Stamp { hlc: at(NOW, 3), eid: Eid::new([2, 0, 0, 0, 0, 1]), hash: 0xab };
        let text = "1790000000000.3@02:00:00:00:00:01#00000000000000ab";
        assert_eq!(stamp.to_string(), text);
        assert_eq!(text.parse(), Ok(stamp));
        for bad in
            ["", "1.2@x#0", "1790000000000@02:00:00:00:00:01#00000000000000ab", "1790000000000.3@02:00:00:00:00:01#ab"]
        {
            assert!(bad.parse::<Stamp>().is_err(), "{bad}");
        }
    }
}
