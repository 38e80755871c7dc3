-- Prompt injection: text that speaks to the model over the head of whoever set it up. Found by how it is said, in
-- fifteen languages and under the usual disguises; what says the same in words of its own is not found.
--
-- Four expressions, each one pass: `plain` (English), `marks` (of chat templates), `foreign` (other languages) and
-- `disguised` (the English core, each letter of which may be a digit, a letter of another alphabet or a mathematical
-- one, with anything that is not seen between them). They follow the rules of the detectors: between the words of a
-- phrase stand only words of a list, so that no counter runs while the next phrase may begin.

-- A phrase's blanks stand for whatever separates words, <name> for a list below. Letters with an accent and Cyrillic
-- ones match in both cases (the text is brought to lower case in ASCII only).
create or replace function ai.phrases(p_phrases text[]) returns text
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_lists constant text[] := array[
    'verb', '(?:ignore|disregard|forget|neglect|skip|override|overrule|bypass|circumvent|discard|erase|dismiss|abandon|cancel|violate|break|drop|pay no attention to'
            '|(?:do not|don t|never|stop|no longer|refuse to|cease to) (?:follow|following|obey|obeying|respect|heed|comply with|adhere to|listen to))',
    -- What may stand before the things, and what says whose they are: no word is in both.
    'fill', '(?:all|any|every|each|of|the|my|our|these|those|this|that|and|or|both|previously|past|current|given|moral|content|developers?|secret|confidential|openai|anthropic'
            '|other|such|full|entire|complete|exact|whole|very|first|last|own|old|as|well|set|list)',
    'whose', '(?:previous|prior|above|earlier|preceding|foregoing|former|your|initial|original|system|safety|ethical|internal|hidden)',
    'rules', '(?:(?:instruction|direction|directive|prompt|command|guideline|guardrail|rule|constraint|restriction|protocol)s?|polic(?:y|ies)|programming|training|context)',
    'tell', '(?:reveal|show|print|output|display|dump|leak|expose|tell|give|repeat|recite|quote|write|list|copy|spell|encode|translate|share|disclose|return|paste|provide'
            '|send|state|include|including|read|type|echo|export|extract|summari[sz]e)',
    'how', '(?:me|us|exactly|now|what|is|are|written|in|out|back|please|word|by|for|verbatim|literally|just|only|to|\d+|words|so|can|i)',
    'free', '(?:without|with no|ha[sd] no|have no|having no|free (?:of|from)|(?:not|isn t|aren t|no longer) (?:bound|limited|restricted) by|unbound by)'
            ' (?:(?:any|all|more|moral|ethical|content|safety|the|usual|or|and|rules?|filters?|limits?|restrictions?|guidelines|censorship|a) )*'
            '(?:restrictions?|rules|limits|limitations|filters?|filtering|guidelines|constraints|polic(?:y|ies)|censorship|guardrails|boundaries|ethics|morals|norms)',
    'mode', '(?:(?:developer|debug|god|sudo|admin|administrator|root|maintenance|jailbreak|dan|unrestricted|unfiltered|override) mode)',
    'ai', '(?:ai|a i|llm|language model|ai model|ai assistant|chatbot|assistant model|large language model)s?'];
  c_gap   constant text := '(?:[\x01-/:-@\x5b-\x60{-~\u00a0\u00a1\u00ab\u00ad\u00bb\u00bf\u2000-\u206f\u3000-\u303f\ufe00-\ufe0f\ufeff\uff01-\uff0f\uff1a]+)';
  c_cases constant text := 'абвгдежзийклмнопрстуфхцчшщъыьэюяёàáâãäåæçèéêëìíîïñòóôõöøùúûüąćęłńśźżğış';
  c_upper constant text := 'АБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯЁÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜĄĆĘŁŃŚŹŻĞIŞ';
  v_text  text := array_to_string(p_phrases, '|');
  v_parts text[];
  v_small text;
  v_both  text;
  v_close integer;
begin
  for i in 1 .. cardinality(c_lists) by 2 loop
    v_text := replace(v_text, '<' || c_lists[i] || '>', c_lists[i + 1]);
  end loop;
  -- Within brackets a letter gets its capital beside it (а-я becomes аА-яЯ, which is both alphabets), elsewhere brackets.
  v_parts := string_to_array(v_text, '[');
  for i in 1 .. length(c_cases) loop
    v_small := substr(c_cases, i, 1);
    continue when strpos(v_text, v_small) = 0;
    v_both := v_small || substr(c_upper, i, 1);
    for j in 1 .. cardinality(v_parts) loop
      continue when strpos(v_parts[j], v_small) = 0;
      v_close := case when j = 1 then 0 else strpos(v_parts[j], ']') end;
      v_parts[j] := replace(left(v_parts[j], v_close), v_small, v_both) || replace(substr(v_parts[j], v_close + 1), v_small, '<' || v_both || '>');
    end loop;
  end loop;
  -- < and > until now, so that these brackets are not taken for those of the text.
  return replace(regexp_replace(array_to_string(v_parts, '['), '<([^a-z<>|]{2})>', '[\1]', 'g'), ' ', c_gap);
end
$$;
comment on function ai.phrases(text[]) is 'A regular expression from phrases in which <name> is a list of words and a blank whatever separates words.';

-- Letters as they are disguised: other alphabets, digits, full-width and mathematical letters, with what is not seen, or
-- hardly, between them. | separates alternatives, ( ) group, * repeats; a blank is nothing of its own, because the gaps
-- are everywhere.
create or replace function ai.disguised(p_words text) returns text
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_like constant text[] := array['a4@àáâãäåāăąαаɑΑА', 'b8ßвЬВΒ', 'c(çćčϲсСⅽ', 'dđďԁⅾ', 'e3€èéêëēėęěеєЕΕ', 'fƒ', 'g9ğɡԍ', 'hһнНΗ', 'i1!|lìíîïīıιіІΙӏⅰ', 'jјЈ', 'kκкКΚ',
    'l1|iłӏⅼ', 'mмМΜⅿ', 'nñńпոΝ', 'o0òóôõöøōοоОΟօ', 'pρрРΡ', 'qԛ', 'rгř', 's5$śšѕЅ', 't7+ţťтτТΤ', 'uùúûüūυսц', 'vνѵⅴ', 'wωшԝѡ', 'x×хХΧ', 'yýÿγуУΥ', 'z2źżžΖ'];
  c_unseen constant text := '[\x01-\x20!-''*-/:;=?^_`~\u00a0\u00ad\u00b7\u0300-\u036f\u180e\u2000-\u206f\u20d0-\u20ff\u3000\ufe00-\ufe0f\ufeff]*';
  v_from   integer := ascii('a');
  v_result text := '';
  v_char   text;
begin
  for i in 1 .. length(p_words) loop
    v_char := substr(p_words, i, 1);
    if v_char collate "C" ~ '[a-z]' then
      v_char := c_like[ascii(v_char) - v_from + 1] || chr(65313 + ascii(v_char) - v_from) || chr(65345 + ascii(v_char) - v_from) || chr(9398 + ascii(v_char) - v_from)
        || chr(9424 + ascii(v_char) - v_from)
        || (select string_agg(chr(119808 + 26 * k + ascii(v_char) - v_from), '') from generate_series(0, 25) k);
      v_result := v_result || '[' || v_char || ']' || c_unseen;
    elsif v_char = '(' then
      v_result := v_result || '(?:';
    elsif v_char <> ' ' then
      v_result := v_result || v_char;
    end if;
  end loop;
  return v_result;
end
$$;
comment on function ai.disguised(text) is 'A regular expression for words whose letters are replaced by look-alikes and spread out.';

create or replace function ai.injection_pattern(p_part text) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select case p_part when 'plain' then '(?<![a-z0-9])(?:' || ai.phrases(array[
    -- what was said before shall not hold
    '<verb> (?:<fill> )*(?:<whose> (?:(?:<fill>|<whose>) )*<rules>(?![a-z])'
      || '|<rules> (?:above|before this|so far|up to now|(?:that |which )?(?:you|(?:the |your )?developers|openai|anthropic|they) (?:were|have been|had been|are|gave|have|set|got|received))(?![a-z]))',
    '(?:ignore|disregard|forget|neglect|pay no attention to) (?:(?:all|everything|anything|whatever|what|the|of|that|you|i|we|were|have|had|been|was|is|said|told|written|wrote|learned|text|words|content|and|in|system|context|message) )*'
      || '(?:above|before|previously|earlier|until now|so far|system (?:message|prompt))(?![a-z])',
    '(?:your|these|previous|prior|above|earlier|safety) (?:(?:<fill>|<whose>) )*(?:instruction|direction|directive|prompt|command|guideline|rule|restriction|constraint|limitation|filter|guardrail)s?'
      || ' (?:(?:are|is|have been|were|now|hereby|do|does|all|has been) )*(?:void|null|invalid|cancell?ed|suspended|lifted|revoked|overridden|disabled|obsolete|deleted'
      || '|no longer (?:valid|apply|applies|in force|in effect|active|relevant|count)|not apply|don t apply)(?![a-z])',
    '(?:here are|these are|(?:only )?follow (?:these|my|only)|obey) (?:your |my |the |only )*new (?:(?:<fill>|<whose>) )*(?:instructions|rules|orders|directives|guidelines)',
    'your new (?:(?:<fill>|<whose>) )*(?:prompt|instructions|rules|task|role|persona|orders|purpose|goal)(?: is| are|\s*:)',
    'follow (?:these|mine|my instructions|my orders|only me|me)(?: only| instead| from now)',
    'act (?:only )?on my orders',
    -- out with the set-up
    '<tell> (?:(?:<how>|<fill>|previous|above) )*(?:your (?:(?:<fill>|<whose>) )*(?:(?:pre |system )?prompts?|system messages?|instructions?|directives|guidelines|rules|programming|configuration|preprompt)'
      || '|(?:system|pre|hidden|secret) (?:system )?(?:prompt|message|instruction)s?|(?:instructions|rules|guidelines) (?:that )?you (?:were|have been|are|got)(?: given| told)?)(?![a-z])',
    '(?:hidden|secret|confidential) (?:system )?(?:prompt|system message|instructions|guidelines)(?![a-z])',
    '(?:what|which) (?:is|are|was|were|does|do|did|s) (?:written in )?your (?:(?:<fill>|<whose>) )*(?:prompt|instructions|pre prompt|preprompt|system message|directives)(?![a-z])',
    '(?:repeat|print|output|copy|recite|echo|translate) (?:back )?(?:(?:all|everything|the|text|words?|content|of|in|your|context|window|exact|whole|entire) )+(?:above (?:this|starting|and|in|verbatim|including|word)|before this|above$)',
    '(?:print|dump|reveal|output|leak|tell me) (?:all |your |the )*(?:secrets|configuration)(?![a-z])',
    'how you (?:were|are|have been) (?:configured|programmed|instructed|prompted|set up)(?![a-z])',
    '(?:your|the) (?:operator|developers?|creators?|makers?|owner|company|programmers?) (?:gave|told|has told|have told|wrote for|set|has given|have given) you(?![a-z])', 'everything (?:that )?you (?:were|have been) told',
    '(?:precedes?|before|above|over) (?:my|the) first (?:message|line) (?:of this conversation|of this chat|in this)|precedes? my first message',
    -- somebody else
    'do anything now', 'you are (?:now )?dan(?![a-z])', '(?:act|behave|answer|speak) as (?:a )?dan(?![a-z])', '(?:dan|stan|dude|aim) mode',
    '(?:enter|enable|activate|switch to|turn on|engage) (?:the )?<mode>(?: (?:now|and|with|so)|\s*[.!;,])', '(?:god|sudo|jailbreak|dan|unrestricted|unfiltered|override) mode',
    'in <mode> (?:you|there|all|any)', 'you are (?:now )?in <mode>', '<mode> (?:is )?(?:on|activated|enabled|engaged)(?![a-z])',
    '(?:with|have been|are now|you are|been|fully) jail ?broken', 'jailbreak (?:enabled|activated|on|successful)',
    '(?:unrestricted|unfiltered|uncensored|amoral|jail ?broken) (?:<ai>|model|assistant|version|persona|character)(?![a-z])',
    '(?:<ai>|model|assistant|bot|hacker|version|act|answer|respond|reply|speak|behave|pretend|imagine|roleplay|you are|if you|that you|as if you) (?:[a-z0-9]+ )?(?:[a-z0-9]+ )?(?:[a-z0-9]+ )?(?:[a-z0-9]+ )?<free>(?![a-z])',
    '(?:as if|as though|pretend|imagine|like) (?:that )?(?:nobody|no one) (?:had |has )?(?:ever )?(?:gave|given|set|told|imposed on|forbidden|forbade) you(?![a-z])',
    '(?:rules|instructions|guidelines) (?:above )?(?:were|had) never (?:been )?(?:written|given|set|there)', 'you (?:are|re) no longer (?:an? |the )?(?:<ai>|assistant|bot|model)(?![a-z])',
    'you (?:now )?(?:have|had) (?:absolutely )?no (?:(?:more|moral|ethical|content|safety) )*(?:restrictions|rules|limits|limitations|filters?|guidelines|constraints|content policy|policies|boundaries)(?![a-z])',
    '(?:you (?:(?:must|will|can|shall|should|may|now|to) )*never|that never|who never|and never|ai never|act (?:[a-z]+ )*never) (?:refuse|refuses|decline|says? no)(?![a-z])',
    '(?:no longer|not|isn t|aren t) bound by', 'comply with (?:every|all|any) (?:request|command|order|demand)', '(?:must|shall|will) (?:now )?obey (?:the user|me|every)',
    '(?:disable|turn off|switch off|remove|bypass|circumvent|deactivate|suspend|lift|drop|evade) (?:(?:your|all|any|the|of|these|its) )+(?:(?:safety|content|ethical|moral|moderation|built in) )*'
      || '(?:safety|content|moderation|ethical|moral|your) (?:and [a-z]+ )?(?:filters?|guidelines|moderation|polic(?:y|ies)|restrictions|protocols|measures|guardrails|checks)',
    '(?:disable|remove|lift|drop|bypass) (?:all )?(?:of )?your (?:restrictions|filters?|limits|limitations|guidelines|guardrails|constraints|safeguards)', 'drop all rules',
    -- with authority
    '(?:i am|i m|as|this is) your (?:developer|creator|administrator|admin|programmer|maker) (?:i |you |and |enter|print|show|give|tell|reveal|ignore|speaking)',
    'this is (?:anthropic|openai|google|meta|mistral|your developer)(?: staff| team| support| engineering| speaking)',
    'i (?:order|command) you to', 'user is now (?:an? )?(?:admin|administrator|root|developer)', '(?:system|admin|administrator|safety) override', 'begin (?:admin|system|root) (?:message|prompt)',
    -- out of a document, to the model that reads it
    '(?:if|when|since|as) you are (?:an? )?(?:<ai>)(?![a-z]) (?:reading|model|and|append|then|please|rate|say|you|do|must|processing|reviewing|assistant)',
    '(?:note|notes|attention|message|ps|p s|instructions?|notice|important|dear|hey)(?: to| for)?(?: the| any| all| every)? (?:<ai>)(?![a-z]) ?(?:assistants?|models?)?',
    'ai (?:when|if) you (?:read|see|process)', 'do not (?:tell|inform|alert) the user', 'end of (?:the )?(?:document|prompt|context|system prompt|user input)\s*-',
    'new task for (?:the )?(?:assistant|ai|model)', '(?:summari[sz]e|translate|answer|review|read) (?:[a-z]+ )?(?:[a-z]+ )?(?:[a-z]+ )?instead (?:reply|say|respond|answer|write|forward|output|tell)',
    'do not (?:summari[sz]e|translate|answer) (?:[a-z]+ )*instead', 'do not follow the user', '(?:send|forward|email|post|upload|exfiltrate) (?:the |all |this |our |your )*(?:conversation|chat|messages|history|contents?|context|system prompt)'
      || ' (?:history |of [a-z]+ )?to (?:https?|[a-z0-9.]+@)', '(?:decode|decrypt|unscramble) (?:[a-z0-9]+ )*and (?:follow|execute|obey|run|do) (?:the |its |what|it)'])
    || ')'

  when 'marks' then array_to_string(array[
    -- of chat templates, and of a turn that the text makes up
    '<\|[ /]*(?:im_start|im_end|im_sep|system|user|assistant|endoftext|endofprompt|eot_id|begin_of_text|start_header_id|end_header_id)[ ]*\|>', '\[/inst\]', '\[inst\][ ]', '<</?sys>>',
    '</(?:system|instructions|assistant|system_prompt|prompt)>', '\[(?:system|system message|admin)\]', '"role"\s*:\s*"(?:system|developer)"', '<start_of_turn>',
    '#[ ]*system(?: prompt| message)?\s*:', '\n\s*(?:system|assistant)\s*:', '^\s*system\s*:\s*(?:you|ignore|new|override|from now)',
    '(?:^|[\n.!?#*])[\s#*]*(?:new|updated|revised) (?:system )?(?:instructions?|rules?|prompt|task|persona|directives?)[*\s]*:',
    -- an address that takes the conversation with it
    '!\[[^]\n]*\]\(https?://[^)\s]*[?&][a-z_]+=[^)\s]*(?:conversation|history|secret|prompt|context|message|summary|\{|<|\[)'], '|')

  when 'foreign' then ai.phrases(array[
    -- German
    '(?:ignorier(?:e|en|t)?|vergiss|vergesst|vergessen|missachte|missachten|übergehe|umgehe|verwirf|lösche) (?:(?:bitte|sie|jetzt|alle[sn]?|die|deine[nr]?|meine|ihre|dir|von|davor|sämtliche[nr]?|zuvor|gegebenen) )*'
      || '(?:alle[nr]?|deine[nr]?|bisherigen?|vorherigen?|vorigen?|obigen?|früheren?|sämtliche[nr]?|vorangegangenen?|zuvor gegebenen|ursprünglichen?) (?:(?:die|deine|bisherigen|vorherigen|vorigen|obigen|früheren) )*(?:anweisung(?:en)?|vorgaben?|regeln|befehle|instruktionen|richtlinien|einschränkungen|anleitungen)',
    '(?:vergiss|ignoriere?|missachte) alles was (?:(?:dir|du|ich|man|bisher|vorher|zuvor|davor|oben) )',
    '(?:dein|deine|deinen|den|deinem|ihren?) (?:[a-zäöü]+ )?system ?(?:prompt|nachricht|anweisung(?:en)?|vorgaben?)(?![a-z])', '(?:befolge|folge) (?:deine[nr]?|den|die) (?:[a-zäöü]+ )?(?:anweisungen|regeln|vorgaben) nicht',
    '(?:du bist|antworte|antwortest|verhalte dich|handle|ki|assistent|modell|hacker|sprich) (?:[a-zäöüß]+ )?(?:[a-zäöüß]+ )?(?:[a-zäöüß]+ )?(?:[a-zäöüß]+ )?ohne (?:jede |jegliche |alle )?(?:regeln|einschränkung(?:en)?|filter|grenzen|beschränkungen|zensur)',
    '(?:betreiber|entwickler|hersteller) (?:dir|ihnen) (?:gegeben|gesagt|vorgegeben)', 'als (?:hätte|ob) (?:dir |dich )?(?:nie |noch nie )?niemand', 'gilt nichts (?:mehr )?von dem was',
    -- French
    'comme si personne (?:ne )?(?:t|vous) ',
    '(?:ignore[zr]?|oublie[zr]?|méprise[zr]?|outrepasse[zr]?|contourne[zr]?|(?:ne )?tien[sz] pas compte|ne suis pas|fais abstraction) (?:(?:toutes?|tous|de|des|les|tes|vos|ces|mes|donc|maintenant|bien) )*(?:instructions?|consignes?|règles?|directives?|ordres|indications)'
      || ' (?:précédente?s?|antérieure?s?|ci dessus|données|d origine|initiales?|système|et|qui|de sécurité)',
    '(?:ignore[zr]?|oublie[zr]?|contourne[zr]?) (?:(?:toutes?|tous) )?(?:tes|vos) (?:instructions?|consignes?|règles?|directives?|ordres)', 'oublie[zr]? tout ce (?:qui|que)',
    '(?:affiche|montre|révèle|donne|dis|répète|écris|quelles? sont|quel est|imprime)[rz]? (?:(?:moi|nous|le|les|mot|pour|exactement) )*(?:ton|tes|votre|vos|le) (?:prompt|message|instructions?|consignes?|règles) (?:système|initiale?s?|cachée?s?|secrète?s?|d origine|complète?s?)', 'prompt système',
    '(?:tu es|vous êtes|ia|réponds|répondez|agis|assistant|modèle) (?:[a-zàâçéèêîôû]+ )?(?:[a-zàâçéèêîôû]+ )?(?:[a-zàâçéèêîôû]+ )?sans (?:aucune? |toute )?(?:restrictions?|filtres?|limites?|règles?|censure|consignes?)',
    -- Spanish, Portuguese, Italian
    '(?:ignor[ae]n?|ignorar|olvid[ae]n?|olvidar|omite|descarta|desobedece|haz caso omiso de|no sigas|pasa por alto) (?:(?:todas?|todos?|de|las|los|tus|sus|mis|estas|por|favor) )*(?:instrucci(?:ones|ón)|reglas|órdenes|indicaciones|directrices|normas|mensajes)'
      || ' (?:anterior(?:es)?|previas?|previos?|iniciales|dadas|del sistema|de seguridad)',
    '(?:ignora|olvida|desobedece|incumple) (?:todas )?tus (?:instrucciones|reglas|directrices|normas)', 'olvida todo lo (?:anterior|que)', 'como si nadie te ', 'como se ninguém te ', 'come se nessuno ti ',
    '(?:muestra|muéstra|revela|dime|enseña|repite|imprime|escribe|cuál es|cuáles son)(?:me|nos)? (?:(?:cuál|es|son|palabra|por|exactamente) )*(?:tu|tus|el|su) (?:[a-zñáéíóú]+ )?(?:prompt|mensaje de sistema|mensaje del sistema|instrucciones (?:ocultas|iniciales|secretas|del sistema))',
    '(?:eres|actúa|responde|ia|asistente|modelo|compórtate) (?:[a-zñáéíóú]+ )?(?:[a-zñáéíóú]+ )?(?:[a-zñáéíóú]+ )?(?:[a-zñáéíóú]+ )?(?:sin|sem) (?:ningun[ao]? |ninguna |nenhuma |qualquer )?(?:restricciones|restricción|restrições|restrição|límites|limites|filtros?|reglas|regras|censura)',
    '(?:ignor[ea]m?|ignorar|esqueç[ae]m?|esquece|esquecer|desconsidere|desobedeça|descarte) (?:(?:todas?|todos?|as|os|suas|seus|tuas|por|favor) )*(?:instruções|regras|ordens|diretrizes|comandos|orientações) (?:anterior(?:es)?|prévias|acima|iniciais|dadas|do sistema)',
    '(?:ignor[ea]|esqueç[ae]|esquece|desobedeça) (?:todas )?(?:as )?(?:suas|tuas|todas as) (?:instruções|regras|diretrizes|restrições)',
    '(?:mostre|mostra|revele|revela|diga|exiba|repita|qual é|escreva)(?: me)? (?:(?:qual|é|o|os|a|as) )*(?:(?:seu|teu|suas|sistema) )?prompt(?: do sistema| de sistema|\.|!|$| inicial)', '(?:o|do|seu|teu) (?:seu )?prompt d[oe] sistema', '(?:responda|aja|você é|ia) (?:[a-zãõáéíóúâêôç]+ )?(?:[a-zãõáéíóúâêôç]+ )?(?:[a-zãõáéíóúâêôç]+ )?sem (?:nenhuma |qualquer |quaisquer )?(?:restriç(?:ão|ões)|limites|filtros?|regras|censura)',
    '(?:ignora(?:re|te)?|dimentica(?:re|te)?|scorda|trascura|disobbedisci a) (?:(?:tutt[ei]|le|i|tue|tuoi|queste|per|favore) )*(?:istruzioni|regole|indicazioni|direttive|ordini|comandi) (?:precedenti|sopra|iniziali|date|ricevute|di sistema|di sicurezza|che ti)',
    '(?:ignora|dimentica|viola) (?:tutte )?(?:le )?tue (?:istruzioni|regole|direttive)', '(?:mostra|mostrami|rivela|rivelami|scrivi|dimmi|ripeti|stampa|qual è) (?:(?:qual|è) )*(?:il |i |le )?(?:tuo |tuoi |tue )?(?:prompt (?:di sistema|del sistema|iniziale)|istruzioni (?:nascoste|iniziali|segrete|di sistema))',
    '(?:sei|rispondi|agisci|ia|comportati) (?:[a-zàèéìòù]+ )?(?:[a-zàèéìòù]+ )?(?:[a-zàèéìòù]+ )?senza (?:alcuna |alcun |nessuna )?(?:restrizion[ei]|limiti|filtri|regole|censura)',
    -- Dutch, Polish
    '(?:negeer|vergeet|omzeil|sla over) (?:(?:alle|al|de|je|uw|jouw|deze|alsjeblieft) )*(?:eerdere|vorige|bovenstaande|voorgaande|je|jouw|uw|oorspronkelijke) (?:[a-z]+ )?(?:instructies|regels|opdrachten|aanwijzingen|richtlijnen)', '(?:je|jouw|uw|de|het) systeem ?(?:prompt|bericht|instructies)',
    '(?:je bent|antwoord|gedraag je|ai) (?:[a-zé]+ )?(?:[a-zé]+ )?(?:[a-zé]+ )?zonder (?:enige |alle )?(?:beperkingen|regels|filters?|grenzen|censuur)',
    '(?:zignoruj|ignoruj|zapomnij|pomiń|odrzuć|złam) (?:(?:o|wszystkie|wszystkich|swoje|swoich|te|tych|proszę) )*(?:(?:poprzedni[ea]|poprzednich|wcześniejsze|wcześniejszych|powyższe|powyższych|swoje|swoich) )+(?:instrukcj[ei]|instrukcjach|poleceni[ae]|poleceniach|zasad(?:y|ach)?|reguł(?:y|ach)?|wytyczne|wytycznych)',
    '(?:swój|twój|swojego|twojego|swoje|twoje) (?:[a-ząćęłńóśźż]+ )?(?:prompt|instrukcje) (?:systemow[yea]|początkowe)', '(?:odpowiadaj|jesteś|działaj|odpowiedz) (?:[a-ząćęłńóśźż]+ )?(?:[a-ząćęłńóśźż]+ )?(?:[a-ząćęłńóśźż]+ )?bez (?:żadnych )?(?:ograniczeń|filtrów|zasad|cenzury)',
    -- Russian, Ukrainian
    '(?:игнорируй(?:те)?|проигнорируй(?:те)?|забудь(?:те)?|отмени(?:те)?|нарушь|не следуй|не соблюдай|ігноруй|забудь) (?:(?:про|о|обо|все[хм]?|всі|эти|свои|свої|твои|данные|пожалуйста) )*'
      || '(?:(?:предыдущи[ех]|прежни[ех]|прошлы[ех]|предшествующие|вышеуказанные|вышестоящие|попередні|свои|своих|свої|все|всі|исходные|системные) )+(?:инструкци[июй]|указани[яйе]|правила?х?|команды|приказы|ограничения|інструкції)',
    'системн(?:ый|ого|ые|ую|ое) (?:промпт|промт|инструкци[июя]|сообщени[ея]|подсказк[уа]|запрос)', '(?:отвечай(?:те)?|ты|ии|действуй|говори|модель) (?:[а-яё]+ )?(?:[а-яё]+ )?(?:[а-яё]+ )?без (?:всяких |каких либо |любых )?(?:ограничений|цензуры|фильтров|правил)',
    '(?:как будто|словно|будто) (?:тебе|тебя) никто',
    -- Turkish
    '(?:önceki|yukarıdaki|tüm|daha önceki|bütün) (?:(?:tüm|bütün|verilen) )*(?:talimat|komut|kural|yönerge)(?:lar|ler)?[ıiıin]*(?:nı|ni)? (?:tamamen )?(?:yok say|görmezden gel|unut|dikkate alma|göz ardı et)', 'kurallarını (?:unut|yok say|çiğne)', 'sistem (?:istem|komut|mesaj|talimat|prompt)[a-zıüğş]* (?:göster|yaz|söyle|açıkla|paylaş)',
    'hiçbir (?:kısıtlama|filtre|sınır|sansür)(?: olmadan|sız)',
    -- Chinese, Japanese, Korean
    '(?:忽略|忽视|忽視|无视|無視|忘记|忘記|忘掉|抛弃|绕过|跳过|不要理会|不要遵守|不再遵守)(?:掉|你|您|的|之前|以前|先前|以上|上面|上述|前面|此前|所有|全部|一切|任何|那些|这些|這些|系统|系統|已有|给|給|到)+(?:指令|指示|说明|說明|提示|命令|规则|規則|要求|限制|设定|設定|规定|内容)',
    '(?:告诉|告訴|显示|顯示|输出|輸出|打印|透露|泄露|揭示|给出|展示|重复|重複|说出|复述)(?:我|出|一下|你|您|的|完整|全部|隐藏|初始|原始)*(?:系统|系統|初始|隐藏)(?:提示词|提示詞|提示|指令|消息|设定|設定)', '不受(?:任何|一切)?(?:限制|约束|約束)', '你(?:现在)?(?:可以做任何事|没有任何(?:规则|限制|约束))', '没有(?:任何)?(?:限制|约束|道德)(?:的)?(?:ai|人工智能|助手|模型)',
    '(?:指示|命令|指令|ルール|規則|プロンプト|制約|設定)(?:を|は)?(?:すべて|全て|全部|一切)?(?:無視|忘れ|破棄|リセット)(?:して|し|て|せよ|しろ)', 'システム ?(?:プロンプト|メッセージ|指示)(?:を|の)(?:内容)?(?:を)?(?:全部|すべて|そのまま|私に)?(?:表示|教え|出力|見せ|公開|開示)', '(?:制限|制約|検閲|フィルター|ルール)(?:なし|無し)(?:で|に)(?:答え|回答|応答|話)',
    '(?:이전|위|앞|지금까지|기존|모든)의? ?(?:모든 |모두 )?(?:지시|명령|지침|규칙|프롬프트)(?:사항)?(?:들)?(?:을|를|은|는)? ?(?:모두 |전부 |다 )?(?:무시|잊|취소|따르지)', '시스템 ?(?:프롬프트|메시지|지시)(?:를|을)? ?(?:내게 |전부 |그대로 )?(?:보여|알려|출력|공개|말해|표시)', '(?:제한|검열|필터|규칙) ?없이 ?(?:대답|답변|응답|말)',
    -- Arabic, Hindi
    '(?:تجاهل|تجاهلي|انس|انسَ|اهمل|أهمل|لا تتبع) (?:(?:كل|جميع|كافة|هذه) )*(?:التعليمات|الأوامر|القواعد|الإرشادات|تعليماتك|قواعدك|الاوامر)', '(?:اعرض|أظهر|اظهر|اكشف|أخبرني|اطبع|ما هو|ما هي) (?:(?:لي|عن|محتوى) )*(?:موجه|تعليمات|رسالة|مطالبة) (?:النظام|نظامك)',
    '(?:पिछले|पहले के|उपरोक्त|ऊपर के|सभी|अपने)(?: सभी| सारे| दिए गए)* (?:निर्देशों|निर्देश|नियमों|नियम|आदेशों) (?:को|की)? ?(?:अनदेखा|नज़रअंदाज़|नजरअंदाज|भूल|भुला|अनदेखी|उपेक्षा)', 'सिस्टम (?:प्रॉम्प्ट|प्रोम्प्ट|संदेश|निर्देश)(?: को)? (?:दिखा|बता|लिख|प्रकट)'])

  when 'disguised' then
    ai.disguised('(ignore|disregard|forget|override|bypass|skip)(all|any|of|the|your|these|those|my|and|system|given|me|plese|please)*'
      '(previous|prior|above|earlier|preceding|your|system|initial|original|all)(all|any|of|the|your|previous|prior|above|earlier|system|and|given)*'
      '(instruction|direction|directive|prompt|command|guideline|rule|restriction)')
    || '|' || ai.disguised('(reveal|show|print|output|tell|display|repeat|give|dump|leak)(me|us|all|of|the|full|hidden|entire)*(your|the|hidden)(full|entire|hidden|secret|initial)*(system|initial|hidden|secret)(prompt|instruction|message)')
    || '|' || ai.disguised('(doanythingnow|developermodeenabled|jailbreakmode)')
  end
$$;
comment on function ai.injection_pattern(text) is 'Regular expression of prompt injection: plain, foreign or disguised.';

-- A word without which no phrase is complete. Building the states of the large expressions costs some microseconds a
-- character at first, so that the short texts of every day go through these small ones before.
create or replace function ai.injection_anchors(p_part text) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select case p_part when 'plain' then
    'instruct|direct|prompt|command|guideline|guardrail|rule|constrain|restrict|protocol|polic|programm|training|context|above|before|previously|earlier|until|so[^a-z]+far|system'
    || '|limit|filter|your[^a-z]+new|follow|orders?(?![a-z])|configur|hidden|secret|confidential|anything[^a-z]+now|(?<![a-z])(?:dan|stan|dude|aim|ai|llm)s?(?![a-z])|mode(?![a-z])|jail|censor|moral|boundar|ethic'
    || '|norms|refuse|decline|says?[^a-z]+no(?![a-z])|bound|comply|obey|safety|moderation|your[^a-z]+(?:developer|creator|admin|programmer|maker)|anthropic|openai|google|meta(?![a-z])|mistral'
    || '|override|(?<![a-z])admin|root(?![a-z])|language[^a-z]+model|chatbot|assistant|(?:tell|inform|alert|follow)[^a-z]+the[^a-z]+user|document|instead|conversation|chat|messages|history|decode|decrypt|unscramble|(?<![a-z])a[^a-z]+i(?![a-z])'
    || '|nobody|no[^a-z]+one|told|gave|given|wrote|precede|first[^a-z]+(?:message|line)|longer|set[^a-z]+up'
  when 'foreign' then
    '[^\x01-\x7f]|instru|anweisung|vorgabe|regel|befehl|richtlinie|anleitung|system|dir|ohne|consigne|ordres|indica|sans|prompt|sin[^a-z]|sem[^a-z]|regl|diret|comando|orient|istruz|regol|ordini'
    || '|senza|opdracht|aanwijz|richtlijn|zonder|polece|zasad|regu|wytyczn|zignoruj|bez[^a-z]|olvida|vergiss|ignorier|oublie|talimat|kural|komut|istem|nadie|personne|nessuno|ningu|niemand|nichts|hersteller|betreiber|entwickler'
  end
$$;
comment on function ai.injection_anchors(text) is 'Regular expression of the words without which no phrase of prompt injection is complete.';

-- Whether a text tries to speak to the model over the head of its owner. Which expression found it, for the explanation.
create or replace function ai.injection_in(p_text text) returns text
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_text text := lower(p_text collate "C");
begin
  return case when v_text collate "C" ~ ai.injection_anchors('plain') and v_text collate "C" ~ ai.injection_pattern('plain') then 'plain'
              when v_text collate "C" ~ ai.injection_pattern('marks') then 'marks'
              when v_text collate "C" ~ ai.injection_anchors('foreign') and v_text collate "C" ~ ai.injection_pattern('foreign') then 'foreign'
              when v_text collate "C" ~ ai.injection_pattern('disguised') then 'disguised' end;
end
$$;
comment on function ai.injection_in(text) is 'Which expression finds prompt injection in a text: plain, marks, foreign, disguised; null: none.';

revoke execute on function ai.phrases(text[]), ai.disguised(text), ai.injection_pattern(text), ai.injection_anchors(text), ai.injection_in(text) from public;
