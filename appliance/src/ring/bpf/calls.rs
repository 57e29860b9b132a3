//! Makes the calls of bpf(2), one function each.

use std::ffi::{CStr, c_long};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::ring::bpf::assembler::Instruction;

/// The commands of bpf(2) (linux/bpf.h).
#[derive(Clone, Copy)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    ProgramLoad = 5,
    #[cfg(test)]
    ProgramTestRun = 10,
    MapTake = 21,
    LinkCreate = 28,
}

/// BPF_MAP_TYPE_HASH
const HASH: u32 = 1;
/// BPF_MAP_TYPE_PROG_ARRAY
const PROGRAMS: u32 = 3;
/// Memory for an entry is allocated with the entry (BPF_F_NO_PREALLOC).
const WITHOUT_MEMORY: u32 = 1;
/// The key may be new or not (BPF_ANY).
const ANY: u64 = 0;
/// The key must be new (BPF_NOEXIST).
const NEW: u64 = 1;
/// BPF_PROG_TYPE_SCHED_CLS
const CLASSIFIER: u32 = 3;
/// How often a program is loaded that the kernel's checker gives up on.
const LOADS: u32 = 10;
/// BPF_TCX_INGRESS
const TCX_INGRESS: u32 = 46;

#[repr(C)]
struct MapCreate {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    node: u32,
    name: [u8; 16],
}

#[repr(C)]
struct Element {
    map: u32,
    unused: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    interface: u32,
    place: u32,
    flags: u32,
    beside: u32,
    unused: u32,
    revision: u64,
}

/// Creates a hash map with room for so many entries.
pub fn map_create(name: &str, sizes: (usize, usize), entries: u32) -> io::Result<OwnedFd> {
    create((HASH, WITHOUT_MEMORY), name, sizes, entries)
}

/// Creates an array that has one program, which other programs can go on with. The kernel empties
/// the array when its last descriptor is closed.
pub fn program_array(name: &str, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let array = create((PROGRAMS, 0), name, (4, 4), 1)?;
    let (first, program) = (0_u32.to_ne_bytes(), raw(program).to_ne_bytes());
    // SAFETY: keys and values of the array have four bytes.
    unsafe { update(array.as_fd(), &first, &program, ANY) }?;
    Ok(array)
}

fn create(
    (kind, flags): (u32, u32),
    name: &str,
    (key, value): (usize, usize),
    entries: u32,
) -> io::Result<OwnedFd> {
    let size = |bytes| u32::try_from(bytes).expect("keys and values are small");
    let asked = MapCreate {
        kind,
        key: size(key),
        value: size(value),
        entries,
        flags,
        inner: 0,
        node: 0,
        name: named(name),
    };
    // SAFETY: the command reads the structure only.
    let fd = unsafe { bpf(Command::MapCreate, &asked) }?;
    Ok(owned(fd))
}

/// Adds an entry. EEXIST: the map has the key. E2BIG: the map is full.
pub fn map_insert(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    // SAFETY: `Map` passes a key and a value of the map's sizes.
    unsafe { update(map, key, value, NEW) }
}

/// # Safety
///
/// `key` and `value` must be as long as the map's keys and values are.
unsafe fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let asked = Element {
        map: raw(map),
        unused: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags,
    };
    // SAFETY: the kernel reads a key and a value, and the caller answers for their lengths.
    unsafe { bpf(Command::MapUpdate, &asked) }?;
    Ok(())
}

/// Reads an entry's value. ENOENT: there is no such entry.
pub fn map_look_up(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    // SAFETY: the caller of `element` passes a key and room for a value of the map's sizes.
    unsafe { element(Command::MapLookup, map, key, value) }
}

/// Removes an entry, and reads its value (Linux 5.14).
pub fn map_take(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    // SAFETY: as above.
    unsafe { element(Command::MapTake, map, key, value) }
}

/// # Safety
///
/// `key` and `value` must be as long as the map's keys and values are.
unsafe fn element(
    command: Command,
    map: BorrowedFd<'_>,
    key: &[u8],
    value: &mut [u8],
) -> io::Result<()> {
    let asked = Element {
        map: raw(map),
        unused: 0,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads a key and writes a value, and the caller answers for their lengths.
    unsafe { bpf(command, &asked) }?;
    Ok(())
}

/// Loads a program. If `log` has bytes, the kernel's checker writes there what it found. The
/// checker gives up with EAGAIN if the thread has a signal to take, which includes work that an
/// io_uring ring left behind (kernel/bpf/verifier.c, `do_check`). So the call is made again, a few
/// times.
pub fn program_load(
    name: &str,
    instructions: &[Instruction],
    license: &CStr,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let asked = ProgramLoad {
        kind: CLASSIFIER,
        count: u32::try_from(instructions.len()).expect("a program is short"),
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).expect("a log is short"),
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        kernel: 0,
        flags: 0,
        name: named(name),
    };
    let mut tries = LOADS;
    loop {
        tries -= 1;
        // SAFETY: the kernel reads so many instructions and a C string, and writes no more into the
        // log than its length.
        match unsafe { bpf(Command::ProgramLoad, &asked) } {
            Err(error) if tries > 0 && error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result.map(owned),
        }
    }
}

/// Lets a program see all packets that come in on an interface, as long as the link is open (Linux
/// 6.6). EINVAL: the kernel has no such links.
pub fn link_create(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    let asked = LinkCreate {
        program: raw(program),
        interface,
        place: TCX_INGRESS,
        flags: 0,
        beside: 0,
        unused: 0,
        revision: 0,
    };
    // SAFETY: the command reads the structure only.
    let fd = unsafe { bpf(Command::LinkCreate, &asked) }?;
    Ok(owned(fd))
}

/// # Safety
///
/// `asked` must be what the command reads (linux/bpf.h, `union bpf_attr`), and its pointers must be
/// valid for what the command does with them.
unsafe fn bpf<T>(command: Command, asked: &T) -> io::Result<RawFd> {
    // SAFETY: the caller answers for the structure. The kernel reads no more than its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as c_long,
            std::ptr::from_ref(asked),
            size_of::<T>() as c_long,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(RawFd::try_from(result).expect("a descriptor is an int"))
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: bpf(2) has just opened the descriptor, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn named(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

/// The result of a test run.
#[cfg(test)]
pub struct Ran {
    pub result: u32,
    pub packet: Vec<u8>,
}

/// Runs a program with a packet that comes in on an interface, as a train if `gso_size` is not 0.
/// With `checks_sum` the kernel checks the sum over the whole packet (CHECKSUM_COMPLETE)
/// afterwards: EBADMSG, if the sum is wrong.
#[cfg(test)]
pub fn test_run(
    program: BorrowedFd<'_>,
    (interface, gso_size): (u32, u32),
    packet: &[u8],
    checks_sum: bool,
) -> io::Result<Ran> {
    #[repr(C)]
    struct TestRun {
        program: u32,
        result: u32,
        size_in: u32,
        size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context_size_in: u32,
        context_size_out: u32,
        context_in: u64,
        context_out: u64,
        flags: u32,
        cpu: u32,
        batch: u32,
        /// In place of padding, which need not be zero: the kernel takes other bytes for a wish.
        unused: u32,
    }
    // `struct __sk_buff`, with its fields `ifindex` and `gso_size`.
    let mut context = [0_u8; 192];
    context[40..44].copy_from_slice(&interface.to_ne_bytes());
    context[176..180].copy_from_slice(&gso_size.to_ne_bytes());
    let mut out = vec![0; packet.len() + 256];
    let mut asked = TestRun {
        program: raw(program),
        result: 0,
        size_in: u32::try_from(packet.len()).expect("a packet"),
        size_out: u32::try_from(out.len()).expect("a packet"),
        data_in: packet.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        duration: 0,
        context_size_in: 192,
        context_size_out: 0,
        context_in: context.as_ptr() as u64,
        context_out: 0,
        // BPF_F_TEST_SKB_CHECKSUM_COMPLETE
        flags: if checks_sum { 4 } else { 0 },
        cpu: 0,
        batch: 0,
        unused: 0,
    };
    // SAFETY: all pointers are valid for the sizes beside them. The kernel writes its results into
    // the structure, which is why the pointer comes from a mutable place.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            Command::ProgramTestRun as c_long,
            &raw mut asked,
            size_of::<TestRun>() as c_long,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    out.truncate(asked.size_out as usize);
    Ok(Ran { result: asked.result, packet: out })
}
