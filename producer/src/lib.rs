//! Puts tasks in and gets results out.
