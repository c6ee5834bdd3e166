-- KEYS: the list, then each task's record.
-- ARGV: prefix of records, milliseconds to keep, most listed, most followers; then for each task: id, fingerprint,
--       key of its idempotency key or '', state, attempts, record, microseconds it was accepted at, follower or ''.
-- Answers for each: 0 when it is new, or { 1 known | 2 conflict, view }.

local PREFIX, KEEP, LISTED, FOLLOWERS = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local answers, entries = {}, {}

for number = 1, #KEYS - 1 do
  local at = number * 8 - 4
  local id, print, alias = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local key, follower = KEYS[number + 1], ARGV[at + 8]

  local known = redis.call('HGET', key, 'print')
  if not known and alias ~= '' then
    local first = redis.call('GET', alias)
    if first then
      known = redis.call('HGET', PREFIX .. first, 'print')
      if known then
        key = PREFIX .. first
      end
    end
  end

  if not known then
    redis.call('HSET', key, 'print', print, 'state', ARGV[at + 4], 'tries', ARGV[at + 5], 'record', ARGV[at + 6])
    redis.call('PEXPIRE', key, KEEP)
    if alias ~= '' then
      redis.call('SET', alias, id, 'PX', KEEP)
      redis.call('HSET', key, 'alias', alias)
    end
    if follower ~= '' then
      follow(key, follower, FOLLOWERS)
    end
    entries[#entries + 1] = ARGV[at + 7]
    entries[#entries + 1] = id
    answers[number] = 0
  elseif #known == #print and known ~= print then
    answers[number] = { 2, view(key) }
  else
    local held = redis.call('HMGET', key, 'state', 'alias')
    if not ENDED[held[1]] then
      if follower ~= '' then
        follow(key, follower, FOLLOWERS)
      end
      keep(key, held[2], KEEP)
    end
    answers[number] = { 1, view(key) }
  end
end

list(KEYS[1], entries, LISTED)
return answers
