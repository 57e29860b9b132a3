//! Walks over a TOML tree. The reader notes every fault with its place, and goes on.

use std::ops::RangeInclusive;
use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::model::place::{At, Place, Problem, did_you_mean};
use crate::table::routing::Protocol;
use crate::toml::lines::Lines;

/// The keys of one kind of table. Other keys are refused.
#[derive(Debug)]
pub struct Section {
    /// The name in the file, such as `listeners`. Empty for the top level.
    pub name: &'static str,
    pub keys: &'static [Key],
}

/// Keys of a listener that are also keys of its own backend.
const SHARED: [&str; 2] = ["name", "endpoints"];

impl Section {
    fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub on: On,
}

/// Which listeners a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Any,
    /// TCP and TLS listeners.
    Stream,
    Tls,
    Udp,
}

impl On {
    pub(crate) fn is_for(self, protocol: Protocol) -> bool {
        match self {
            Self::Any => true,
            Self::Stream => protocol != Protocol::Udp,
            Self::Tls => protocol == Protocol::Tls,
            Self::Udp => protocol == Protocol::Udp,
        }
    }
}

pub(crate) const fn key(name: &'static str, on: On) -> Key {
    Key { name, on }
}

pub(crate) const fn any(name: &'static str) -> Key {
    key(name, On::Any)
}

pub(crate) fn or<T>(given: Option<At<T>>, default: T) -> T {
    given.map_or(default, |given| given.value)
}

/// A table of the file, and the keys that the table may have.
#[derive(Clone, Debug)]
pub(crate) struct Table<'t> {
    entries: &'t DeTable<'t>,
    section: &'static Section,
    guest: Guest,
    defaults: Defaults<'t>,
    pub(crate) place: Place,
}

/// The tables of defaults, for keys that a listener or backend does not have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Defaults<'t> {
    pub(crate) listener: Option<Rc<Table<'t>>>,
    pub(crate) backend: Option<Rc<Table<'t>>>,
    /// The listener's protocol. Defaults for other protocols do not apply.
    pub(crate) protocol: Option<Protocol>,
}

/// One table may have keys of two sections: a listener has the keys of a backend, if it has
/// endpoints of its own.
#[derive(Clone, Copy, Debug)]
enum Guest {
    None,
    /// The other section, whose keys may stand here too. A key of both sections is not the guest's.
    Of(&'static Section),
    /// This table is the guest. Keys of the other section are hidden, except for [`SHARED`].
    In(&'static Section),
}

pub(crate) struct Reader<'t> {
    /// Of every file, in the order of their bytes.
    files: Vec<Lines<'t>>,
    pub(crate) problems: Vec<Problem>,
}

/// The result of a value reader. The error says what is allowed.
pub(crate) type Read<T> = Result<T, String>;

impl<'t> Reader<'t> {
    pub(crate) fn new(file: &str, text: &'t str) -> Self {
        Self::of(&[(file, text)])
    }

    /// Reads several files, each a name and a text. There is at least one.
    pub(crate) fn of(files: &[(&str, &'t str)]) -> Self {
        Self { files: Lines::of(files), problems: Vec::new() }
    }

    /// `byte` counts from the first byte of all files.
    pub(crate) fn place(&self, byte: usize, field: String) -> Place {
        let file = &self.files[self.file_of(byte)];
        file.place(byte - file.start, field)
    }

    /// The first byte of a file.
    pub(crate) fn start_of(&self, file: usize) -> usize {
        self.files[file].start
    }

    fn file_of(&self, byte: usize) -> usize {
        self.files.partition_point(|file| file.start <= byte) - 1
    }

    pub(crate) fn refuse(&mut self, place: &Place, message: impl Into<String>) {
        self.problems.push(place.problem(message));
    }

    /// Takes a table as one of `section`, and refuses keys that the table may not have.
    pub(crate) fn open(
        &mut self,
        entries: &'t DeTable<'t>,
        section: &'static Section,
        place: Place,
    ) -> Table<'t> {
        let defaults = Defaults::default();
        let table = Table { entries, section, guest: Guest::None, defaults, place };
        self.refuse_unknown_keys(&table);
        table
    }

    /// Takes a table as one of `section`, in which keys of `guest` may stand too.
    pub(crate) fn open_with_guest(
        &mut self,
        entries: &'t DeTable<'t>,
        section: &'static Section,
        guest: &'static Section,
        place: Place,
    ) -> Table<'t> {
        let defaults = Defaults::default();
        let table = Table { entries, section, guest: Guest::Of(guest), defaults, place };
        self.refuse_unknown_keys(&table);
        table
    }

    fn refuse_unknown_keys(&mut self, table: &Table<'t>) {
        for key in table.entries.keys() {
            let name = key.get_ref().as_ref();
            let place = self.place(key.span().start, table.field(name));
            if table.known(name).is_none() {
                let known = || table.keys().map(|key| key.name);
                let near = did_you_mean(name, known());
                let all = known().collect::<Vec<_>>().join(", ");
                self.refuse(&place, format!("unknown key{near}; allowed here: {all}"));
            }
        }
    }

    /// The value of a key, if the key is there and `read` takes the value.
    pub(crate) fn get<T>(
        &mut self,
        table: &Table<'t>,
        key: &str,
        read: impl FnOnce(&'t DeValue<'t>) -> Read<T>,
    ) -> Option<At<T>> {
        let (value, field) = table.value(key)?;
        self.one(value, field, read)
    }

    /// The value of a key that must be there.
    pub(crate) fn need<T>(
        &mut self,
        table: &Table<'t>,
        key: &str,
        what: &str,
        read: impl FnOnce(&'t DeValue<'t>) -> Read<T>,
    ) -> Option<At<T>> {
        self.miss(table, key, what);
        self.get(table, key, read)
    }

    /// Every element of a list that `read` takes. `None` if there is no list.
    pub(crate) fn list<T>(
        &mut self,
        table: &Table<'t>,
        key: &str,
        read: impl Fn(&'t DeValue<'t>) -> Read<T>,
    ) -> Option<Vec<At<T>>> {
        let (_, field) = table.value(key)?;
        let is_top = table.place.field.is_empty();
        let values = self.get(table, key, |value| {
            array(value).map_err(|message| match value {
                DeValue::Table(_) if is_top => format!("{message}; each stands under [[{key}]]"),
                DeValue::String(text) => format!("{message}; write [\"{text}\"]"),
                _ => message,
            })
        });
        let values = values?.value;
        // Each file counts its own elements.
        let (mut file, mut first) = (0, 0);
        let read = |(i, value): (usize, &'t Spanned<DeValue<'t>>)| {
            let of = self.file_of(value.span().start);
            if of != file {
                (file, first) = (of, i);
            }
            self.one(value, format!("{field}[{}]", i - first), &read)
        };
        Some(values.iter().enumerate().filter_map(read).collect())
    }

    /// Every element of a list that `read` takes. A single table counts as a list of one table.
    pub(crate) fn list_or_table<T>(
        &mut self,
        table: &Table<'t>,
        key: &str,
        read: impl Fn(&'t DeValue<'t>) -> Read<T>,
    ) -> Option<Vec<At<T>>> {
        match table.value(key)?.0.get_ref() {
            DeValue::Table(_) => Some(self.get(table, key, read).into_iter().collect()),
            _ => self.list(table, key, read),
        }
    }

    pub(crate) fn miss(&mut self, table: &Table<'t>, key: &str, what: &str) {
        if !table.has(key) {
            let mut place = table.place.clone();
            place.field = table.field(key);
            self.refuse(&place, format!("missing; {what}"));
        }
    }

    pub(crate) fn table(
        &mut self,
        table: &Table<'t>,
        key: &str,
        section: &'static Section,
    ) -> Option<Table<'t>> {
        let At { value, place } = self.get(table, key, entries)?;
        Some(self.open(value, section, place))
    }

    /// A list of tables, `[[key]]`. The caller opens each table.
    pub(crate) fn tables(&mut self, table: &Table<'t>, key: &str) -> Vec<At<&'t DeTable<'t>>> {
        self.list(table, key, entries).unwrap_or_default()
    }

    /// The value of a key. A missing key, or a value that `read` does not take, is not noted as a
    /// fault.
    pub(crate) fn peek<T>(
        &self,
        table: &Table<'t>,
        key: &str,
        read: impl FnOnce(&'t DeValue<'t>) -> Read<T>,
    ) -> Option<At<T>> {
        let (found, field) = table.value(key)?;
        let value = read(found.get_ref()).ok()?;
        Some(At { value, place: self.place(found.span().start, field) })
    }

    fn one<T>(
        &mut self,
        value: &'t Spanned<DeValue<'t>>,
        field: String,
        read: impl FnOnce(&'t DeValue<'t>) -> Read<T>,
    ) -> Option<At<T>> {
        let place = self.place(value.span().start, field);
        match read(value.get_ref()) {
            Ok(value) => Some(At { value, place }),
            Err(message) => {
                self.refuse(&place, message);
                None
            }
        }
    }
}

impl<'t> Table<'t> {
    /// Whether the key has a value, here or among the defaults.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// Whether the key stands here, and not only among the defaults.
    pub(crate) fn has_own(&self, key: &str) -> bool {
        self.own(key).is_some()
    }

    /// The same table, with defaults for keys that it does not have.
    pub(crate) fn with_defaults(self, defaults: Defaults<'t>) -> Self {
        Self { defaults, ..self }
    }

    /// The same table with the guest's keys.
    pub(crate) fn guest(&self) -> Option<Self> {
        let Guest::Of(section) = self.guest else { return None };
        Some(Self { section, guest: Guest::In(self.section), ..self.clone() })
    }

    /// The keys that stand here and are the guest's.
    pub(crate) fn guests(&self, reader: &Reader<'t>) -> impl Iterator<Item = Place> {
        self.entries.keys().filter_map(|key| {
            let name = key.get_ref().as_ref();
            let is_guest = self.section.key(name).is_none() && self.known(name).is_some();
            is_guest.then(|| reader.place(key.span().start, self.field(name)))
        })
    }

    /// The keys that may stand here, a guest's last.
    fn keys(&self) -> impl Iterator<Item = &'static Key> {
        let guest = if let Guest::Of(guest) = self.guest { guest.keys } else { &[] };
        let of_guest = guest.iter().filter(|key| self.section.key(key.name).is_none());
        self.section.keys.iter().chain(of_guest)
    }

    fn known(&self, name: &str) -> Option<&'static Key> {
        match self.guest {
            Guest::None => self.section.key(name),
            Guest::Of(guest) => self.section.key(name).or_else(|| guest.key(name)),
            Guest::In(host) if !SHARED.contains(&name) && host.key(name).is_some() => None,
            Guest::In(_) => self.section.key(name),
        }
    }

    pub(crate) fn field(&self, key: &str) -> String {
        if self.place.field.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.place.field)
        }
    }

    /// The keys of this table that are for `on`, with their places.
    pub(crate) fn given(
        &self,
        reader: &Reader<'t>,
        on: impl Fn(On) -> bool,
    ) -> impl Iterator<Item = (On, Place)> {
        self.entries.keys().filter_map(move |key| {
            let name = key.get_ref().as_ref();
            let known = self.known(name).filter(|known| on(known.on))?;
            Some((known.on, reader.place(key.span().start, self.field(name))))
        })
    }

    /// The value of a key, and the field where the value stands.
    fn value(&self, key: &str) -> Option<(&'t Spanned<DeValue<'t>>, String)> {
        debug_assert!(self.section.key(key).is_some(), "{key}");
        self.own(key).map(|value| (value, self.field(key))).or_else(|| self.default(key))
    }

    fn own(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        if let Guest::In(_) = self.guest {
            self.known(key)?;
        }
        self.entries.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn default(&self, key: &str) -> Option<(&'t Spanned<DeValue<'t>>, String)> {
        let Defaults { listener, backend, protocol } = &self.defaults;
        let tables = [listener, backend].into_iter().flatten();
        let mut tables = tables.filter(|table| table.section.name == self.section.name);
        let table = tables.next()?;
        let on = self.section.key(key)?.on;
        let applies = protocol.is_none_or(|protocol| on.is_for(protocol));
        table.value(key).filter(|_| applies)
    }
}

fn array<'t>(value: &'t DeValue<'t>) -> Read<&'t [Spanned<DeValue<'t>>]> {
    match value {
        DeValue::Array(values) => Ok(values.as_ref()),
        other => Err(not("a list", other)),
    }
}

fn entries<'t>(value: &'t DeValue<'t>) -> Read<&'t DeTable<'t>> {
    value.as_table().ok_or_else(|| not("a table", value))
}

pub(crate) fn string<'t>(value: &'t DeValue<'t>) -> Read<&'t str> {
    value.as_str().ok_or_else(|| not("a string", value))
}

pub(crate) fn boolean(value: &DeValue<'_>) -> Read<bool> {
    value.as_bool().ok_or_else(|| not("true or false", value))
}

/// A whole number within `range`.
pub(crate) fn integer<T>(range: RangeInclusive<T>) -> impl Fn(&DeValue<'_>) -> Read<T>
where
    T: TryFrom<i64> + PartialOrd + std::fmt::Display,
{
    move |value| {
        let allowed = format!("a whole number, {} to {}", range.start(), range.end());
        let DeValue::Integer(number) = value else { return Err(not(&allowed, value)) };
        let parsed = i64::from_str_radix(number.as_str(), number.radix()).ok();
        parsed
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| format!("must be {allowed}, not {number}"))
    }
}

/// One of a few words, each with its value.
pub(crate) fn word<T: Copy>(words: &[(&str, T)]) -> impl Fn(&DeValue<'_>) -> Read<T> {
    move |value| {
        let given = string(value)?;
        let found = words.iter().find(|(word, _)| *word == given);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let all: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            let near = did_you_mean(given, words.iter().map(|(word, _)| *word));
            format!("must be {}, not \"{given}\"{near}", all.join(" or "))
        })
    }
}

pub(crate) fn not(allowed: &str, value: &DeValue<'_>) -> String {
    format!("must be {allowed}, not {}", kind(value))
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The value of `read`, if `read` found no fault. The default that replaces a faulty value could
/// clash with a value that is right.
pub(crate) fn flawless<'t, T>(
    reader: &mut Reader<'t>,
    read: impl FnOnce(&mut Reader<'t>) -> Option<T>,
) -> Option<T> {
    let before = reader.problems.len();
    read(reader).filter(|_| reader.problems.len() == before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_in_every_radix_and_within_their_range_only() {
        let read = |text| {
            let value = DeValue::parse(text).expect("TOML");
            integer(1..=255u8)(value.get_ref())
        };
        assert_eq!(read("0xff"), Ok(255));
        assert_eq!(read("1_0"), Ok(10));
        for text in ["0", "256", "-1", "99999999999999999999"] {
            let message = read(text).unwrap_err();
            assert_eq!(message, format!("must be a whole number, 1 to 255, not {text}"));
        }
        assert_eq!(
            read("1.0").unwrap_err(),
            "must be a whole number, 1 to 255, not a number with a fraction"
        );
    }
}
