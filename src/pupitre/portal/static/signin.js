// The page for signing in is shown to nobody who is signed in: other tabs look whether they still are.
new BroadcastChannel("pupitre-sign-in").postMessage("look");
