// ---- which method should I take --------------------------------------------------
function drawChoice() {}
function listenChoice() {}
