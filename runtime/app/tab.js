// Which visit this tab of the browser belongs to. Its name is kept where no other tab and no other
// site can read it, survives a reload of the page, and goes with the tab.

const KEY = "brats-visit";

export default function mount({ data, setTriggerValue }) {
  const kept = sessionStorage.getItem(KEY);
  if (kept && kept !== data.token && kept !== data.refused) setTriggerValue("kept", kept);
  else sessionStorage.setItem(KEY, data.token);
}
