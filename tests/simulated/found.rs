//! The shortest history of each fault that was found, and what was broken.
