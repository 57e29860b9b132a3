//! Keeps values in slots with generations, so that an index that outlives its value finds nothing.

/// Holds at most `limit` values. Memory is reserved when the slab is made, and first touched when
/// used.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    /// The head of the list of free slots among `slots`, or `NONE`.
    free: u32,
    len: u32,
    limit: u32,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    content: Content<T>,
}

#[derive(Debug)]
enum Content<T> {
    Free { next: u32 },
    Used(T),
}

/// No slot.
pub const NONE: u32 = u32::MAX;

impl<T> Slab<T> {
    /// Bytes of a slot.
    pub const SLOT: usize = size_of::<Slot<T>>();

    pub fn new(limit: u32) -> Self {
        Self { slots: Vec::with_capacity(limit as usize), free: NONE, len: 0, limit }
    }

    /// Returns the slot and generation of the new value, or `None` if all slots are used.
    pub fn insert(&mut self, value: T) -> Option<(u32, u32)> {
        if self.free != NONE {
            let index = self.free;
            let slot = &mut self.slots[index as usize];
            let Content::Free { next } = slot.content else { unreachable!("free list is free") };
            self.free = next;
            slot.content = Content::Used(value);
            self.len += 1;
            return Some((index, slot.generation));
        }
        let index = self.high_water();
        if index >= self.limit {
            return None;
        }
        self.slots.push(Slot { generation: 0, content: Content::Used(value) });
        self.len += 1;
        Some((index, 0))
    }

    /// The value, if the slot is still in the generation that the caller knows.
    pub fn get_mut(&mut self, slot: u32, generation: u32) -> Option<&mut T> {
        match self.slots.get_mut(slot as usize) {
            Some(Slot { generation: now, content: Content::Used(value) }) if *now == generation => {
                Some(value)
            }
            _ => None,
        }
    }

    /// The value of a slot that the caller knows to be used.
    pub fn at(&self, slot: u32) -> Option<&T> {
        match self.slots.get(slot as usize) {
            Some(Slot { content: Content::Used(value), .. }) => Some(value),
            _ => None,
        }
    }

    pub fn at_mut(&mut self, slot: u32) -> Option<&mut T> {
        match self.slots.get_mut(slot as usize) {
            Some(Slot { content: Content::Used(value), .. }) => Some(value),
            _ => None,
        }
    }

    pub fn generation(&self, slot: u32) -> u32 {
        self.slots[slot as usize].generation
    }

    pub fn remove(&mut self, slot: u32) -> Option<T> {
        let entry = self.slots.get_mut(slot as usize)?;
        if matches!(entry.content, Content::Free { .. }) {
            return None;
        }
        let content = std::mem::replace(&mut entry.content, Content::Free { next: self.free });
        entry.generation = (entry.generation + 1) & crate::contract::Token::MAX_GENERATION;
        self.free = slot;
        self.len -= 1;
        match content {
            Content::Used(value) => Some(value),
            Content::Free { .. } => None,
        }
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn is_full(&self) -> bool {
        self.len == self.limit
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// How many more values fit.
    pub fn room(&self) -> u32 {
        self.limit - self.len
    }

    /// The number of slots that were ever used: the range that a sweep has to look at.
    pub fn high_water(&self) -> u32 {
        u32::try_from(self.slots.len()).expect("limit is a u32")
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.slots).filter_map(|(index, slot)| match &slot.content {
            Content::Used(value) => Some((index, value)),
            Content::Free { .. } => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_generation_finds_nothing() {
        let mut slab = Slab::new(2);
        let (slot, generation) = slab.insert("a").unwrap();
        assert_eq!(slab.remove(slot), Some("a"));
        assert_eq!(slab.remove(slot), None);
        let (again, next) = slab.insert("b").unwrap();
        assert_eq!(again, slot);
        assert_ne!(next, generation);
        assert!(slab.get_mut(slot, generation).is_none());
        assert_eq!(slab.get_mut(slot, next), Some(&mut "b"));
    }

    #[test]
    fn full_refuses_and_never_grows() {
        let mut slab = Slab::new(2);
        slab.insert(1).unwrap();
        let (slot, _) = slab.insert(2).unwrap();
        assert!(slab.is_full());
        assert!(slab.insert(3).is_none());
        slab.remove(slot);
        assert!(slab.insert(4).is_some());
        assert_eq!(slab.len(), 2);
        assert_eq!(slab.high_water(), 2);
    }
}
