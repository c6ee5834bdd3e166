-- KEYS: the list, its counter, then each task's record.
-- ARGV: prefix of records, milliseconds to keep, most listed, most followers, '1' to take in none that is not known;
-- then each task's record.
-- Answers 0 when all are new; otherwise for each: 0 when it is new, or { 1 known | 2 conflict | 3 to be cancelled, id,
-- record }.

local PREFIX, KEEP, LISTED, FOLLOWERS = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local ONLY_KNOWN = ARGV[5] == '1'
local answers, entries, new = {}, {}, 0

for number = 1, #KEYS - 2 do
  local key, record = KEYS[number + 2], ARGV[number + 5]
  local at = run_of(record)
  local alias, from = alias_of(record, at)

  local known
  if not alias and ONLY_KNOWN then
    known = redis.call('GET', key)
  elseif not alias then
    known = not redis.call('SET', key, record, 'NX', 'PX', KEEP) and redis.call('GET', key)
  else
    known = redis.call('GET', key)
    local first = not known and redis.call('GET', alias)
    if first then
      known = record_at(PREFIX .. first)
      key = known and PREFIX .. first or key
    end
    if not known and not ONLY_KNOWN then
      redis.call('SET', key, record, 'PX', KEEP)
      redis.call('SET', alias, sub(key, -32), 'PX', KEEP)
    end
  end

  if ONLY_KNOWN and (not known or #known == 1) then
    answers[number] = 0
    new = new + 1
  elseif known and #known == 1 then
    -- It was to be cancelled before it came.
    record = marked(record, at, 4)
    write(key, record, at, KEEP)
    if alias then
      redis.call('SET', alias, sub(key, -32), 'PX', KEEP)
    end
    entries[#entries + 1] = listed(key, sub(record, 2, 9))
    answers[number] = { 3, sub(key, -32), record }
  elseif not known then
    entries[#entries + 1] = listed(key, sub(record, 2, 9))
    answers[number] = 0
    new = new + 1
  elseif byte(known, 10) == byte(record, 10) and sub(known, 11, 26) ~= sub(record, 11, 26) then
    answers[number] = { 2, sub(key, -32), known }
  else
    local known_at, kind = run_of(known), 1
    if byte(known, known_at) < SUCCEEDED then
      kind = unwanted(known, known_at) and 3 or 1
      if from < at then
        known, known_at = follow(known, known_at, sub(record, from, at - 1), FOLLOWERS)
      end
      if not ONLY_KNOWN and byte(known, known_at) < QUEUED and byte(record, at) == QUEUED then
        -- What it waited for has ended.
        known = sub(known, 1, known_at - 1) .. pack('<B', QUEUED) .. sub(known, known_at + 1)
      end
      write(key, known, known_at, KEEP)
    end
    answers[number] = { kind, sub(key, -32), known }
  end
end

list(KEYS[1], KEYS[2], entries, LISTED)
return new == #KEYS - 2 and 0 or answers
