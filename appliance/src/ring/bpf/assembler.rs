//! Writes programs for the kernel's BPF machine (RFC 9669): typed instructions, and labels with
//! jumps in the forward direction only, so that every program ends.

use std::mem::size_of;

/// One instruction, as bpf(2) takes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    opcode: u8,
    /// The destination in the low half, the source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8, "the kernel's `struct bpf_insn`");
const _: () = assert!(cfg!(target_endian = "little"), "registers stand in the other order");

/// A register. `R0` has results. `R1` to `R5` are arguments, and each call makes them unreadable.
/// `R6` to `R9` outlive calls. `R10` is the end of the stack, which has 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// The bytes of one access to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Byte = 0x10,
    Half = 0x08,
    Word = 0x00,
    Double = 0x18,
}

/// The comparisons of conditional jumps. Numbers count as unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum If {
    Equal = 0x10,
    Greater = 0x20,
    NotEqual = 0x50,
    Less = 0xa0,
}

/// The operations on 64-bit registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Do {
    Add = 0x00,
    Subtract = 0x10,
    Divide = 0x30,
    And = 0x50,
}

/// The second operand of an operation or comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    Register(Register),
    Number(i32),
}

impl From<Register> for With {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

impl From<i32> for With {
    fn from(number: i32) -> Self {
        Self::Number(number)
    }
}

/// The functions of the kernel that programs may call, by their numbers (linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    MapLookup = 1,
    StoreBytes = 9,
    ReplaceIpChecksum = 10,
    ReplaceTransportChecksum = 11,
    TailCall = 12,
    Redirect = 23,
    LoadBytes = 26,
    ChecksumDifference = 28,
    FibLookup = 69,
}

/// A place in the program to jump to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// A program that is being written.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    /// By label: the place, once it is known.
    places: Vec<Option<usize>>,
    /// Jumps whose distance is not known yet.
    jumps: Vec<(usize, Label)>,
}

const LOAD: u8 = 0x01;
const STORE_NUMBER: u8 = 0x02;
const STORE: u8 = 0x03;
const ALU_32: u8 = 0x04;
const JUMP: u8 = 0x05;
const ALU_64: u8 = 0x07;
const MEMORY: u8 = 0x60;
const ATOMIC: u8 = 0xc0;
const MOVE: u8 = 0xb0;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
const TO_BIG_ENDIAN: u8 = 0xd8;
const FROM_REGISTER: u8 = 0x08;
/// A load of 64 bits that are in the program, over two instructions.
const LOAD_WIDE: u8 = 0x18;
/// The source of such a load, if the number is the descriptor of a map (BPF_PSEUDO_MAP_FD).
const MAP: Register = Register::R1;

impl Assembler {
    /// A label without a place.
    pub fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The next instruction is the label's place.
    pub fn place(&mut self, label: Label) {
        let place = &mut self.places[label.0];
        assert!(place.is_none(), "a label has one place");
        *place = Some(self.code.len());
    }

    /// `into = source`
    pub fn set(&mut self, into: Register, source: impl Into<With>) {
        self.operate(ALU_64 | MOVE, into, source.into());
    }

    /// `into = into OPERATION operand`
    pub fn calculate(&mut self, operation: Do, into: Register, operand: impl Into<With>) {
        self.operate(ALU_64 | operation as u8, into, operand.into());
    }

    /// Reads the low 16 bits of a register in the order of the network.
    pub fn read_network(&mut self, register: Register) {
        self.push(ALU_32 | TO_BIG_ENDIAN, (register, Register::R0), 0, 16);
    }

    /// `into = *(from + offset)`
    pub fn load(&mut self, size: Size, into: Register, (from, offset): (Register, i16)) {
        self.push(LOAD | MEMORY | size as u8, (into, from), offset, 0);
    }

    /// `*(to + offset) = value`
    pub fn store(&mut self, size: Size, (to, offset): (Register, i16), value: impl Into<With>) {
        match value.into() {
            With::Register(from) => {
                self.push(STORE | MEMORY | size as u8, (to, from), offset, 0);
            }
            With::Number(number) => {
                let registers = (to, Register::R0);
                self.push(STORE_NUMBER | MEMORY | size as u8, registers, offset, number);
            }
        }
    }

    /// `*(to + offset) += value`, 64 bits, as one step for all cores.
    pub fn add_atomically(&mut self, (to, offset): (Register, i16), value: Register) {
        self.push(STORE | ATOMIC | Size::Double as u8, (to, value), offset, 0);
    }

    /// `into` = the map with this descriptor.
    pub fn load_map(&mut self, into: Register, descriptor: i32) {
        self.push(LOAD_WIDE, (into, MAP), 0, descriptor);
        self.push(0, (Register::R0, Register::R0), 0, 0);
    }

    pub fn jump_if(
        &mut self,
        left: Register,
        comparison: If,
        right: impl Into<With>,
        target: Label,
    ) {
        self.jump_to(target);
        self.operate(JUMP | comparison as u8, left, right.into());
    }

    pub fn jump(&mut self, target: Label) {
        self.jump_to(target);
        self.push(JUMP, (Register::R0, Register::R0), 0, 0);
    }

    pub fn call(&mut self, helper: Helper) {
        self.push(JUMP | CALL, (Register::R0, Register::R0), 0, helper as i32);
    }

    /// Ends the program. `R0` is its result.
    pub fn exit(&mut self) {
        self.push(JUMP | EXIT, (Register::R0, Register::R0), 0, 0);
    }

    /// The program, with all jumps.
    pub fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let place = self.places[label.0].expect("a label that is jumped to has a place");
            let distance = place.checked_sub(at + 1).expect("jumps go forward");
            self.code[at].offset = i16::try_from(distance).expect("a program is short");
        }
        self.code
    }

    fn jump_to(&mut self, target: Label) {
        self.jumps.push((self.code.len(), target));
    }

    fn operate(&mut self, opcode: u8, left: Register, right: With) {
        match right {
            With::Register(right) => self.push(opcode | FROM_REGISTER, (left, right), 0, 0),
            With::Number(number) => self.push(opcode, (left, Register::R0), 0, number),
        }
    }

    fn push(
        &mut self,
        opcode: u8,
        (destination, source): (Register, Register),
        offset: i16,
        immediate: i32,
    ) {
        let registers = destination as u8 | (source as u8) << 4;
        self.code.push(Instruction { opcode, registers, offset, immediate });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words follow from RFC 9669, sections 3 to 5.
    #[test]
    fn instructions_are_as_the_kernel_reads_them() {
        let mut code = Assembler::default();
        let end = code.label();
        code.set(Register::R6, Register::R1);
        code.load(Size::Word, Register::R0, (Register::R6, 16));
        code.jump_if(Register::R0, If::NotEqual, 8, end);
        code.read_network(Register::R0);
        code.add_atomically((Register::R7, 24), Register::R0);
        code.load_map(Register::R1, 5);
        code.call(Helper::MapLookup);
        code.store(Size::Byte, (Register::R10, -3), 7);
        code.place(end);
        code.set(Register::R0, -1);
        code.exit();
        let words: Vec<u64> = code.finish().into_iter().map(word).collect();
        let expected = [
            0x0000_0000_0000_16bf,
            0x0000_0000_0010_6061,
            0x0000_0008_0006_0055,
            0x0000_0010_0000_00dc,
            0x0000_0000_0018_07db,
            0x0000_0005_0000_1118,
            0x0000_0000_0000_0000,
            0x0000_0001_0000_0085,
            0x0000_0007_fffd_0a72,
            0xffff_ffff_0000_00b7,
            0x0000_0000_0000_0095,
        ];
        assert_eq!(words, expected);
    }

    fn word(instruction: Instruction) -> u64 {
        let Instruction { opcode, registers, offset, immediate } = instruction;
        u64::from(opcode)
            | u64::from(registers) << 8
            | u64::from(offset.cast_unsigned()) << 16
            | u64::from(immediate.cast_unsigned()) << 32
    }
}
