#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| taskyard_fuzz::workflow::check(bytes));
