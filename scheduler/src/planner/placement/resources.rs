/// What a model takes of a host for as long as it is there, or what a host has.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Resources {
    /// Tasks at once. A model's own are its limit on one host; a host's are shared by its models in turns, so that these
    /// do not add up as the others do.
    pub slots: u32,
    pub memory_mb: u64,
    /// Graphics processors, or parts of one: whatever the caller counts in.
    pub gpu: u64,
}

impl Resources {
    /// Whether what is held fits a host. Slots are shared, and need only be there.
    pub(super) fn fit(self, host: Self) -> bool {
        self.memory_mb <= host.memory_mb && self.gpu <= host.gpu
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            slots: self.slots.saturating_add(other.slots),
            memory_mb: self.memory_mb.saturating_add(other.memory_mb),
            gpu: self.gpu.saturating_add(other.gpu),
        }
    }

    pub(super) fn less(self, other: Self) -> Self {
        Self {
            slots: self.slots.saturating_sub(other.slots),
            memory_mb: self.memory_mb.saturating_sub(other.memory_mb),
            gpu: self.gpu.saturating_sub(other.gpu),
        }
    }
}
